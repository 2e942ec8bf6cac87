"""Tests of configuration files: how they are read, what they build, and how a value is written into one."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from langchain_openai import ChatOpenAI
from pydantic import ValidationError

from trim_graph import SettingsError, TrimContext, open_ledger
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
from trim_graph.config import (
    EXAMPLE,
    Parts,
    TrimConfig,
    build_graph,
    build_parts,
    for_measuring,
    load_config,
    make_config,
)
from trim_graph.config.load import check_place, with_value, write_config
from trim_graph.config.schema import (
    VLLMPRM,
    FileSettings,
    TransformersModel,
    TransformersPRM,
    VLLMEngineModel,
    VLLMEnginePRM,
    VLLMGenerativePRM,
    VLLMModel,
    scorer_parts,
)
from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.settings import ConfigSection, Settings
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

MODELS = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"


STEPS = ["one is 1", "two is wrong", "the answer is \\boxed{3}"]


RIGHT = ["ONE IS 1", "TWO IS 2", "THE ANSWER IS \\boxed{3}"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(text: str) -> str:
        Path("trim.yaml").write_text(text, encoding="utf-8")
        return "trim.yaml"

    return make


def folder_of_a_model(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    return place


def scripted(**scores):
    return Parts(
        ScriptedChatModel(script=STEPS),
        ScriptedChatModel(script=RIGHT),
        ScriptedScorer({"two is wrong": 0.4}),
    )


def refused(path, **options) -> str:
    with pytest.raises(SettingsError) as caught:
        load_config(path, **options)
    return str(caught.value)


def test_the_documented_example_is_valid(write, tmp_path):
    folder_of_a_model(tmp_path / "models" / "large")
    config = load_config(write(EXAMPLE))
    assert config.large.model == str(tmp_path / "models" / "large")
    assert config.small.model == "Qwen/Qwen2.5-Math-1.5B-Instruct"
    assert config.checkpoint == f"sqlite:{tmp_path / 'runs.db'}"
    assert config.budget.large_tokens == 2000
    assert config.prices.large.output == 1.5
    parts = build_parts(config)
    assert parts.small.device == "auto"
    assert parts.large.dtype == "bfloat16"
    assert parts.scorer.model == "Qwen/Qwen2.5-Math-PRM-7B"


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    folder_of_a_model(tmp_path / "set-up" / "mine")
    folder_of_a_model(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "set-up" / "trim.yaml"
    file.write_text("small: {type: transformers, model: mine}\nlarge: {type: example}\npolicy: small_only\n")
    assert load_config(file).small.model == str(tmp_path / "set-up" / "mine")
    assert load_config("set-up/trim.yaml").small.model == str(tmp_path / "set-up" / "mine")
    file.write_text(file.read_text().replace("mine", "other"))
    said = refused(file)
    assert "small.model" in said
    assert str(tmp_path / "set-up" / "other") in said


def test_run_settings_are_those_of_the_graph():
    known = set(Settings.model_fields) - {"budget", "quotas", "prices", "large_alone", "policy"}
    assert set(FileSettings.model_fields) == known
    assert FileSettings().model_dump() == Settings().model_dump(include=known)
    assert FileSettings.model_config == ConfigSection.model_config


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ("small_only", "small_only()"),
        ("{type: large_only}", "large_only()"),
        ("{type: threshold, t: 0.4}", "threshold(0.4)"),
        ("{type: advantage, minimum: 0.1}", "advantage(0.1, price_per_token=0.0)"),
        (
            "{type: advantage, minimum: -0.2, price_per_token: 0.01}",
            "advantage(-0.2, price_per_token=0.01)",
        ),
        ("{type: random_rate, rate: 0.3}", "random_rate(0.3)"),
        (
            "{type: stay_on_large, k: 2, policy: {type: threshold, t: 1}}",
            "stay_on_large(threshold(1.0), k=2)",
        ),
        (
            "{type: any_of, policies: [small_only, {type: threshold, t: 0.1}, large_only]}",
            "((small_only() | threshold(0.1)) | large_only())",
        ),
        ("{type: all_of, policies: [small_only, large_only]}", "(small_only() & large_only())"),
    ],
)
def test_a_policy_is_built_as_it_is_written(write, policy, shown):
    assert repr(load_config(write(f"{MODELS}policy: {policy}")).policy.build()) == shown


def test_a_learned_policy_takes_another_threshold_in_the_file(write):
    path = POLICIES / "sequence-0.02.json"
    config = load_config(write(f"{MODELS}policy: {{type: file, path: {path}, threshold: 0.3}}"))
    assert config.policy.build().threshold == 0.3
    assert config.policy.model_dump() == {"type": "file", "path": str(path), "threshold": 0.3}
    plain = load_config(write(f"{MODELS}policy: {path}"))
    assert plain.policy.build().threshold == 0.5
    assert plain.policy.model_dump() == {"type": "file", "path": str(path)}


@pytest.mark.parametrize("threshold", ["1.1", "-0.1", ".nan", "high"])
def test_a_threshold_of_a_policy_file_that_is_no_probability_is_refused(write, threshold):
    path = POLICIES / "sequence-0.02.json"
    with pytest.raises(SettingsError, match="threshold"):
        load_config(write(f"{MODELS}policy: {{type: file, path: {path}, threshold: {threshold}}}"))


def test_build_graph_passes_everything_on(write):
    config = load_config(
        write(
            f"{MODELS}policy: {{type: threshold, t: 0.5}}\n"
            "budget: {large_calls: 1}\nprices: {large: {output: 1000000}}\n"
            "settings: {max_steps: 2, instruction: null, seed: 4}\n"
        )
    )
    summary = build_graph(config, parts=scripted()).invoke({"messages": [("user", "count")]})["trim"]
    assert summary["stopped"] == "max_steps"
    assert summary["steps"] == {"small": 1, "large": 1}
    assert summary["cost"] == 4


def test_a_policy_that_needs_scores_needs_a_scorer(write):
    config = load_config(
        write("small: {type: example}\nlarge: {type: example}\npolicy: {type: threshold, t: 1}")
    )
    with pytest.raises(
        SettingsError, match="threshold needs scores, and the configuration names no scorer: add one"
    ):
        build_graph(config, parts=scripted()._replace(scorer=None))


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("trim_graph.examples.arithmetic.SMALL", tmp_path / "nothing")
    config = make_config({"small": {"type": "example"}, "large": {"type": "example"}, "policy": "small_only"})
    with pytest.raises(SettingsError, match=r"^small: .*nothing.*no such folder"):
        build_parts(config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "trim.yaml is empty; it needs the keys small, large and policy"),
        ("- small", "trim.yaml holds ['small']; it needs"),
        ("small: [", "trim.yaml, line 1, column 9: not valid YAML"),
        ("small: {a: 1 b: 2}", "not valid YAML: expected ',' or '}', but got ':'"),
        ("small: [1}", "expected ',' or ']', but got '}'"),
        ("a:\n\tb: 1", "found character '\\t' that cannot start any token"),
        ("a: \x00", "trim.yaml: not valid YAML"),
        (MODELS, "trim.yaml: policy: this key is missing"),
        (f"{MODELS}policy: small_only\npolicy: large_only", "trim.yaml, line 5: policy is set twice"),
        (
            f"{MODELS}policy: treshold",
            "trim.yaml, line 4: policy: unknown type 'treshold', did you mean threshold? There are: small",
        ),
        (
            f"{MODELS}policy: 3",
            "line 4: policy: is 3: choose small, large, a threshold in [0, 1], or a policy",
        ),
        (f"{MODELS}policy: {{t: 0.5}}", "line 4: policy: is {'t': 0.5}; expected a mapping with a type"),
        (
            f"{MODELS}policy: {{type: threshold, t: 1.5}}",
            "policy.t: is 1.5; it should be less than or equal to 1",
        ),
        (f"{MODELS}policy: {{type: threshold}}", "policy.t: this key is missing"),
        (
            f"{MODELS}policy:\n  type: threshold\n  t: 0.5\n  k: 2",
            "line 7: policy.k: unknown key. There are: type, t",
        ),
        (
            f"{MODELS}policy:\n  type: any_of\n  policies:\n  - small_only\n  - {{type: threshold, tt: 1}}",
            "line 8: policy.policies[1].tt: unknown key, did you mean t?",
        ),
        (f"{MODELS}policy: small_only\nbudgt: {{}}", "line 5: budgt: unknown key, did you mean budget?"),
        (
            f"{MODELS}policy: small_only\nbudget:\n  min_tokens: 0",
            "line 6: budget.min_tokens: is 0; it should be greater than or equal to 1",
        ),
        (f"{MODELS}policy: small_only\nbudget:", "line 5: budget: is empty; expected a mapping"),
        (
            f"{MODELS}policy: small_only\nprices: {{large: {{inptu: 1}}}}",
            "prices.large.inptu: unknown key, did you mean input? There are: input, output, cached_input",
        ),
        (f"{MODELS}policy: small_only\nsettings: {{max_steps: many}}", "settings.max_steps: is 'many'"),
        (
            f"{MODELS}policy: small_only\ncheckpoint: sqlit",
            "line 5: checkpoint: is not one of the choices: choose none, memory, sqlite:PATH, postgresql://",
        ),
        (f"{MODELS}policy: small_only\ncheckpoint: ['x']", "checkpoint: is not a text: choose none"),
        ("small: {type: vlm}\nlarge: {type: example}\npolicy: small_only", "small: unknown type 'vlm'"),
        (
            "small: {type: transformers, model: ./nix}\nlarge: {type: example}\npolicy: small_only",
            "nix': no such folder. Give the folder of a model in the transformers layout",
        ),
        (
            "small: {type: transformers, model: 3}\nlarge: {type: example}\npolicy: small_only",
            "is 3; it should",
        ),
        (
            "small: {type: vllm, model: m, base_url: localhost}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.base_url: does not begin with http:// or https://; it looks like http://localhost",
        ),
        (
            "small: {type: vllm, model: m, base_url: ['http://a:1', 3]}\n"
            "large: {type: example}\npolicy: small_only",
            "small.base_url: should be an address or a list of addresses",
        ),
        (
            "small: {type: vllm, model: m, base_url: ['http://a:1', 'http://a:1/v1']}\n"
            "large: {type: example}\npolicy: small_only",
            "small.base_url: names http://a:1 more than once",
        ),
        (
            "small: {type: vllm, model: m, api_key: sk-1}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.api_key: unknown key, did you mean api_key_env?",
        ),
        (
            "small: {type: vllm}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.model: this key is missing",
        ),
        (
            "small: {type: transformers, modle: x/y}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.modle: unknown key, did you mean model?",
        ),
    ],
)
def test_errors_name_the_line_the_key_and_the_remedy(write, text, said):
    message = refused(write(text))
    assert said in message
    assert len(message.splitlines()) <= 2


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


SECRET = "{{type: langchain, model: 'openai:m', kwargs: {{{}}}}}"


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


def test_a_password_in_a_url_is_not_repeated(write):
    said = refused(
        write("small: {type: vllm, model: m, base_url: 'http://me:hunter2@x'}\nlarge: {type: example}")
    )
    assert "small.base_url: holds a user name or password" in said
    assert "hunter2" not in said


def test_a_wrong_key_is_reported_before_what_follows_from_it(write):
    said = refused(write("small: {type: transformers, modle: x}\nlagre: {}\npolicy: small_only\nbudget: 3"))
    assert [line.split(":")[1].strip() for line in said.splitlines()] == ["small.modle", "lagre"]
    assert said.endswith("(and 3 more)")


def test_files_that_cannot_be_read(tmp_path):
    assert "nix.yaml does not exist (looked for /" in refused(tmp_path / "nix.yaml")
    assert "cannot be read" in refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    assert "not UTF-8" in refused(tmp_path / "latin.yaml")


def test_overrides_replace_policies_and_join_mappings(write):
    path = write(f"{MODELS}policy: {{type: threshold, t: 0.5}}\nbudget: {{large_tokens: 50, seconds: 9}}")
    config = load_config(path, overrides={"policy": "small_only", "budget": {"large_tokens": 20}})
    assert config.policy.type == "small_only"
    assert (config.budget.large_tokens, config.budget.seconds) == (20, 9)


def test_errors_distinguish_the_command_line_from_the_file(write):
    path = write(f"{MODELS}policy: small_only\nbudget: {{seconds: many}}")
    said = refused(path, overrides={"budget": {"min_tokens": 0}})
    assert "command line: budget.min_tokens: is 0" in said
    assert "trim.yaml, line 5: budget.seconds: is 'many'" in said


@pytest.mark.parametrize("remainder", [0, 3, -4])
def test_a_limit_that_is_used_up_is_a_limit(write, remainder):
    path = write(f"{MODELS}policy: small_only\nbudget: {{large_tokens: {remainder}}}")
    assert load_config(path).budget.large_tokens == max(0, remainder)
    overridden = load_config(path, overrides={"budget": {"seconds": remainder}})
    assert overridden.budget.seconds == max(0, remainder)


def test_yaml_runs_no_code(write):
    said = refused(write("small: !!python/object/apply:os.getcwd []"))
    assert "not valid YAML: could not determine a constructor" in said


def test_aliases_work_and_do_not_loop(write):
    config = load_config(write("small: &m {type: example}\nlarge: *m\npolicy: small_only"))
    assert config.large == config.small
    assert "unknown key" in refused(write("&a\nb: *a"))


def test_a_validated_configuration_validates_again(write, tmp_path):
    folder_of_a_model(tmp_path / "models" / "large")
    config = load_config(write(EXAMPLE))
    assert make_config(json.loads(config.model_dump_json())) == config


def test_direct_validation_is_strict_too():
    with pytest.raises(ValidationError):
        TrimConfig.model_validate({"small": {"type": "example"}, "large": {"type": "example"}})


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


@pytest.mark.parametrize(
    ("added", "reported"),
    [
        (
            "quotas: {user: {large_tokens: 5}}",
            "quotas need a ledger that counts: add for example ledger",
        ),
        ("ledger: none", "ledger: cannot be none: choose memory, sqlite:PATH, postgresql://"),
        ("ledger: redis", "ledger: is not one of the choices: choose memory"),
        ("ledger: postgresql://u:secret@h/d", "ledger: holds a password; set PGPASSWORD"),
        ("ledger: memory\nquotas: {user: {tokens: 5}}", r"quotas\.user\.tokens"),
    ],
)
def test_a_ledger_and_quotas_go_together(write, added, reported):
    said = refused(write(f"{MODELS}policy: small_only\n{added}\n"))
    assert "secret" not in said
    assert re.search(reported, said), said


def test_a_graph_of_a_file_draws_from_its_ledger(write, tmp_path):
    text = f"{MODELS}policy: {{type: threshold, t: 0.5}}\nquotas: {{user: {{large_calls: 1}}}}\n"
    config = load_config(write(f"{text}ledger: sqlite:spend.db\n"))
    assert config.ledger == f"sqlite:{tmp_path / 'spend.db'}"
    with open_ledger(config.ledger) as ledger:
        graph = build_graph(config, parts=scripted(), ledger=ledger)
        graph.invoke({"messages": "count"}, context=TrimContext(user="ada"))
        assert ledger.used("user:ada").large_calls == 1
    with pytest.raises(SettingsError, match="no ledger that counts"):
        build_graph(config, parts=scripted())


def test_runs_that_measure_draw_from_no_account_and_ask_nobody(write):
    text = f"{MODELS}policy: {{type: threshold, t: 0.5}}\nquotas: {{user: {{large_calls: 1}}}}\n"
    asks = "budget: {large_calls: 1, on_exhausted: ask}\nsettings: {ask_below: 0.9}\nledger: memory\n"
    config = load_config(write(text + asks))
    result = build_graph(for_measuring(config), parts=scripted()).invoke({"messages": "count"})
    assert result["trim"]["stopped"] == "finished"
    assert "accounts" not in result["trim"]


# A value is replaced in a file, and the rest of the file stays as it is


NEW = {"type": "threshold", "t": 0.25}


@pytest.mark.parametrize(
    "policy",
    [
        "policy: small_only",
        "policy: {type: threshold, t: 0.5}  # by hand",
        "policy:\n  type: threshold\n  t: 0.5  # by hand",
        "policy:\n  # by hand\n  type: any_of\n  policies:\n  - type: threshold\n    t: 0.5\n  - small_only",
        "'policy': |-\n  small_only",
        "policy: &p {type: threshold, t: 0.5}",
    ],
)
@pytest.mark.parametrize(
    "after", ["", "\n", "\n\n# the end\n", "\n# prices\n\nprices: {large: {output: 1}}  # p\n"]
)
def test_the_rest_stays_as_it_is(policy, after):
    text = f"# begin\n{MODELS}\n{policy}{after}"
    new = with_value(text, ["policy"], NEW)
    assert yaml.safe_load(new) == {**yaml.safe_load(text), "policy": NEW}
    assert new.startswith(f"# begin\n{MODELS}\n")
    assert new.endswith(after)


@pytest.mark.parametrize("after", ["", "\n", "\n# the end\n", "\n...\n"])
def test_a_key_that_is_missing_is_added_at_the_end(after):
    text = f"{MODELS}policy: small_only  # p{after}"
    new = with_value(text, ["large_alone"], {"length_ratio": 1.1})
    assert new.startswith(f"{MODELS}policy: small_only  # p\n")
    assert new.endswith("\nlarge_alone: {length_ratio: 1.1}\n")
    assert yaml.safe_load(new) == {**yaml.safe_load(text), "large_alone": {"length_ratio": 1.1}}


def test_what_cannot_be_replaced_in_place_is_written_anew():
    text = f"{MODELS}policy: &p {{type: threshold, t: 0.5}}\nother: *p\n"
    new = with_value(text, ["policy"], NEW)
    assert yaml.safe_load(new) == {**yaml.safe_load(text), "policy": NEW}


@pytest.mark.parametrize(
    ("text", "new"),
    [
        (
            "quality:\n  # for the shop\n  high: {max_loss: 0.01}  # one\n  fast: {save: 0.7}\n",
            "quality:\n  # for the shop\n  high: {type: threshold, t: 0.25}  # one\n  fast: {save: 0.7}\n",
        ),
        (
            "quality: {high: {max_loss: 0.01}, b: 1}  # q\n",
            "quality: {high: {type: threshold, t: 0.25}, b: 1}  # q\n",
        ),
        (
            "quality:\n  high:\n    max_loss: 0.01\n  b: 1\n",
            "quality:\n  high: {type: threshold, t: 0.25}\n  b: 1\n",
        ),
    ],
)
def test_a_value_within_a_section_is_replaced_in_place(text, new):
    assert with_value(text, ["quality", "high"], NEW) == new


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)


values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    before=st.dictionaries(st.text("abc", min_size=1, max_size=3), values, max_size=2),
    policy=values,
    after=st.dictionaries(st.text("xyz", min_size=1, max_size=3), values, max_size=2),
    flow=st.booleans(),
)
def test_any_file_keeps_its_other_keys(before, policy, after, flow):
    data = {**before, "policy": policy, **after}
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=flow, allow_unicode=True)
    assert yaml.safe_load(with_value(text, ["policy"], NEW)) == {**yaml.safe_load(text), "policy": NEW}


def test_of_the_example_models(tmp_path):
    write_config(None, tmp_path / "trim.yaml", {("policy",): NEW})
    assert load_config(tmp_path / "trim.yaml").policy.model_dump() == NEW


def test_a_policy_file_is_named_from_where_the_configuration_stands(tmp_path):
    (tmp_path / "policies").mkdir()
    policy = {"type": "file", "path": str(tmp_path / "policies" / "a.json")}
    write_config(None, tmp_path / "trim.yaml", {("policy",): policy})
    assert "path: policies/a.json" in (tmp_path / "trim.yaml").read_text()


def test_policy_files_within_policies_are_named_from_there_too(tmp_path):
    (tmp_path / "policies").mkdir()
    file = {"type": "file", "path": str(tmp_path / "policies" / "a.json")}
    joined = {"type": "any_of", "policies": [{"type": "threshold", "t": 0.5}, file]}
    policy = {"type": "stay_on_large", "k": 2, "policy": joined}
    write_config(None, tmp_path / "trim.yaml", {("policy",): policy})
    text = (tmp_path / "trim.yaml").read_text()
    assert "path: policies/a.json" in text
    assert str(tmp_path) not in text
    read = load_config(tmp_path / "trim.yaml").policy.model_dump()
    assert read["policy"]["policies"][1] == file


def test_a_place_where_paths_would_lead_elsewhere(tmp_path):
    (tmp_path / "other").mkdir()
    source = tmp_path / "trim.yaml"
    source.write_text(f"{MODELS}policy: small_only\ncheckpoint: sqlite:runs.db\n")
    check_place(source, tmp_path / "new.yaml")
    with pytest.raises(SettingsError, match="lead elsewhere from there"):
        check_place(source, tmp_path / "other" / "new.yaml")
    source.write_text(f"{MODELS}policy: small_only\n")
    check_place(source, tmp_path / "other" / "new.yaml")
    with pytest.raises(SettingsError, match="cannot be written"):
        check_place(source, tmp_path / "other")
