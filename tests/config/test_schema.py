"""Tests of the models and scorers that a configuration file names: how they are built, what is refused."""

import pytest
from langchain_openai import ChatOpenAI

from tests.config.conftest import MODELS, refused
from trim_graph import SettingsError
from trim_graph.adapters import (
    CascadeScorer,
    ChatTransformers,
    ChatVLLM,
    ChatVLLMEngine,
    TransformersProcessReward,
    TurnSignals,
    VLLMEngineProcessReward,
    VLLMGenerativeProcessReward,
    VLLMProcessReward,
)
from trim_graph.config import build_graph, build_parts, load_config, make_config
from trim_graph.config.schema import (
    VLLMPRM,
    TransformersModel,
    TransformersPRM,
    VLLMEngineModel,
    VLLMEnginePRM,
    VLLMGenerativePRM,
    VLLMModel,
    scorer_parts,
)


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("trim_graph.examples.arithmetic.SMALL", tmp_path / "nothing")
    config = make_config({"small": {"type": "example"}, "large": {"type": "example"}, "policy": "small_only"})
    with pytest.raises(SettingsError, match=r"^small: .*nothing.*no such folder"):
        build_parts(config)


def test_models_on_servers_get_their_settings(write):
    config = load_config(
        write(
            "small: {type: vllm, model: s, base_url: 'http://a:1/v1'}\n"
            "large: {type: vllm, model: l, base_url: 'http://b:2', api_key_env: MY_KEY, seed: 3,"
            " chat_template_kwargs: {enable_thinking: false}, extra_body: {top_k: 5}}\n"
            "scorer: {type: vllm_prm, model: p, base_url: 'http://c:3', tokenizer: org/prm}\n"
            "policy: {type: threshold, t: 0.5}\n"
        )
    )
    small, large, scorer = build_parts(config)
    assert (small.model, small.base_url) == ("s", "http://a:1/v1")
    assert (large.api_key_env, large.seed, large.extra_body) == ("MY_KEY", 3, {"top_k": 5})
    assert large.chat_template_kwargs == {"enable_thinking": False}
    assert "VLLMProcessReward(model='p', base_url='http://c:3'" in repr(scorer)
    assert scorer.tokenizer == "org/prm"
    assert build_graph(config).name


HOSTED = "{type: langchain, model: 'openai:m', kwargs: {temperature: 0, base_url: 'http://a:1/v1'}}"


def test_hosted_models_and_a_judge(write, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    text = (
        f"small: {HOSTED}\nlarge: {{type: vllm, model: l}}\n"
        f"scorer: {{type: llm_judge, model: {HOSTED}, top_logprobs: 5, cache_size: 10}}\n"
        "policy: {type: threshold, t: 0.7}\n"
    )
    config = load_config(write(text))
    small, _, scorer = build_parts(config)
    assert isinstance(small, ChatOpenAI)
    assert (small.model_name, small.temperature, small.openai_api_base) == ("m", 0, "http://a:1/v1")
    assert isinstance(scorer.model, ChatOpenAI)
    assert (scorer.top_logprobs, scorer._scores._size) == (5, 10)
    assert build_graph(config).name
    assert "sk-very-secret" not in repr(config)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SettingsError, match=r"small: openai:m: .*OPENAI_API_KEY"):
        build_parts(config)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{type: langchain, model: gpt-4.1}", "small.model: is 'gpt-4.1'; name the provider too"),
        ("{type: langchain, model: 'openai:'}", "name the provider too"),
        (
            "{type: langchain, model: 'openai:m', kwargs: {api_key: hunter2}}",
            "kwargs.api_key does not belong",
        ),
        (
            "{type: langchain, model: 'openai:m', kwargs: {default_headers: {A: hunter2}}}",
            "kwargs.default_headers",
        ),
        ("{type: langchain, model: 'openai:m', kwargs: {github_token: hunter2}}", "kwargs.github_token"),
    ],
)
def test_hosted_models_that_are_refused(write, model, said):
    message = refused(write(f"small: {model}\nlarge: {{type: example}}\npolicy: small_only\n"))
    assert said in message
    assert "hunter2" not in message


def test_token_probabilities_must_be_reported_by_the_models(write):
    text = (
        "small: {type: vllm, model: s, logprobs: true}\nlarge: {type: example, logprobs: LARGE}\n"
        "scorer: {type: token_probability}\npolicy: {type: threshold, t: 0.9}\n"
    )
    assert build_graph(load_config(write(text.replace("LARGE", "true")))).name
    with pytest.raises(SettingsError, match=r"set logprobs=True on both .*; large has not"):
        build_graph(load_config(write(text.replace("LARGE", "false"))))


SCORERS_WITHOUT_TRAINING = """\
small: &small {type: vllm, model: s}
large: &large {type: vllm, model: l}
scorer: SCORER
policy: {type: threshold, t: 0.5}
"""


def test_scorers_without_training_are_built_with_their_settings(write):
    def built(scorer):
        config = load_config(write(SCORERS_WITHOUT_TRAINING.replace("SCORER", scorer)))
        return build_graph(config).name and build_parts(config).scorer

    window = built("{type: token_probability, statistic: lowest_window, window: 6}")
    assert repr(window) == "TokenProbability('lowest_window', window=6)"
    plus = built("{type: vllm_generative_prm, model: p, format: math_shepherd}")
    assert isinstance(plus, VLLMGenerativeProcessReward)
    cascade = built(
        "{type: cascade, first: {type: llm_judge, model: *small, scale: yes_no}, "
        "second: {type: llm_judge, model: *large}, unsure: [0.1, 0.9]}"
    )
    assert isinstance(cascade, CascadeScorer)
    assert (cascade.first.model.model, cascade.second.model.model) == ("s", "l")
    assert (cascade.first.scale, cascade.unsure) == ("yes_no", (0.1, 0.9))


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("{type: token_probability, window: 6}", "only statistic='lowest_window' has a window"),
        ("{type: token_probability, statistic: least}", "scorer.statistic"),
        ("{type: token_probability, statistic: lowest_window, window: 0}", "scorer.window"),
        ("{type: vllm_generative_prm, model: p, format: qwen}", "choose math_shepherd or rlhflow"),
        ("{type: llm_judge, model: *small, scale: stars}", "scorer.scale"),
        ("{type: cascade, first: {type: example}}", "scorer.second"),
        ("{type: cascade, first: {type: example}, second: {type: exampel}}", "unknown type 'exampel'"),
        (
            "{type: cascade, first: {type: example}, second: {type: example}, unsure: [0.9, 0.1]}",
            "no pair of probabilities",
        ),
    ],
)
def test_scorers_without_training_that_are_refused(write, scorer, said):
    assert said in refused(write(SCORERS_WITHOUT_TRAINING.replace("SCORER", scorer)))


def test_signals_of_turns_and_the_lowest_of_several_scorers(write):
    scorers = "[{type: turn_signals, repeated_call: null, empty: 0.1}, {type: example}]"
    models = MODELS.replace("scorer: {type: example}\n", "")
    text = f"{models}scorer: {{type: minimum, scorers: {scorers}}}\npolicy: {{type: threshold, t: 0.5}}\n"
    config = load_config(write(text))
    signals, example = build_parts(config).scorer.scorers
    assert signals == TurnSignals(repeated_call=None, empty=0.1)
    assert isinstance(example, TransformersProcessReward)
    assert [part.type for part in scorer_parts(config.scorer)] == ["turn_signals", "example"]
    with pytest.raises(SettingsError, match="TurnSignals rates an agent's turns"):
        build_graph(config)


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("{type: turn_signals, empty: 2}", "scorer.empty: is 2"),
        ("{type: turn_signals, eror: 0}", "scorer.eror: unknown key"),
        ("{type: minimum, scorers: [{type: turn_signals}]}", "scorer.scorers: "),
        ("{type: minimum, scorers: [{type: example}, {type: prm}]}", "scorer.scorers[1]: unknown type 'prm'"),
    ],
)
def test_scorers_of_turns_that_are_refused(write, scorer, said):
    text = f"small: {{type: example}}\nlarge: {{type: example}}\nscorer: {scorer}\npolicy: small_only\n"
    assert said in refused(write(text))


PARTS_OF_ADAPTERS = [
    (TransformersModel, ChatTransformers, set()),
    (VLLMModel, ChatVLLM, {"serve"}),
    (VLLMEngineModel, ChatVLLMEngine, set()),
    (TransformersPRM, TransformersProcessReward, set()),
    (VLLMPRM, VLLMProcessReward, {"serve"}),
    (VLLMEnginePRM, VLLMEngineProcessReward, set()),
]


GENERATIVE = {"format": "math_shepherd"}


def test_every_setting_of_a_generative_prm_is_one_of_its_adapter():
    settings = set(VLLMGenerativePRM.model_fields) - {"type", "serve"}
    written = VLLMGenerativePRM(type="vllm_generative_prm", model="org/m", **GENERATIVE).model_dump()
    made = VLLMGenerativeProcessReward("org/m", **GENERATIVE)
    assert {name: getattr(made, name) for name in settings} == {name: written[name] for name in settings}


@pytest.mark.parametrize(("part", "adapter", "own"), PARTS_OF_ADAPTERS, ids=lambda one: str(one)[:30])
def test_every_setting_of_a_part_is_one_of_its_adapter(part, adapter, own):
    settings = set(part.model_fields) - {"type"} - own
    assert settings <= set(adapter.model_fields)
    assert part.model_config["extra"] == "forbid"
    assert part.model_config["hide_input_in_errors"]
    written = part(type=part.model_fields["type"].annotation.__args__[0], model="org/m").model_dump()
    made = adapter(model="org/m")
    assert {name: getattr(made, name) for name in settings} == {name: written[name] for name in settings}


@pytest.mark.parametrize("kind", ["transformers_prm", "vllm_prm"])
def test_the_format_of_a_reward_model(write, kind):
    base = "small: {type: example}\nlarge: {type: example}\npolicy: {type: threshold, t: 0.5}\n"
    scorer = f"type: {kind}, model: org/prm, format: math_shepherd, step_token: так"
    built = build_parts(load_config(write(f"{base}scorer: {{{scorer}}}"))).scorer
    assert (built.format, built.step_token, built.system_prompt) == ("math_shepherd", "так", "auto")
    built = build_parts(load_config(write(f"{base}scorer: {{type: {kind}, model: org/prm}}"))).scorer
    assert (built.format, built.step_token, built.system_prompt) == ("auto", None, "auto")
    message = refused(write(f"{base}scorer: {{type: {kind}, model: org/prm, format: llama}}"))
    assert "line 4: scorer.format" in message
    message = refused(
        write(f"{base}scorer: {{type: {kind}, model: org/prm, format: skywork, step_token: x}}")
    )
    assert "line 4: scorer: step_token='x': the format skywork has none to choose" in message
