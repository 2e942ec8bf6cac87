"""The section ``shadow``: what it is read as, and a graph that answers with one model beside it."""

import json

import pytest
from langchain_core.messages import AIMessage

from trim_graph import SettingsError, Shadow, TrimChatModel, TrimContext
from trim_graph.config import Parts, build_graph, for_measuring, load_config
from trim_graph.shadow import read_shadow
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

MODELS = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\npolicy: 0.5\n"
SMALL = ["small one", "small two", r"so it is \boxed{4}"]
LARGE = ["LARGE one", "LARGE two", r"SO it is \boxed{5}"]


@pytest.fixture
def load(tmp_path):
    def write(section):
        (tmp_path / "trim.yaml").write_text(f"{MODELS}shadow: {section}\n")
        return load_config(tmp_path / "trim.yaml")

    return write


@pytest.fixture
def parts():
    return Parts(
        ScriptedChatModel(script=SMALL, name="tiny"),
        ScriptedChatModel(script=LARGE, name="huge"),
        ScriptedScorer({"small two": 0.1}),
    )


def test_the_section_gives_a_shadow_its_options(load, tmp_path, parts):
    config = load(
        "{answers: small, record: s.db, rate: 0.5, run_rate: 0.1, budget: {large_calls: 500}, text: true}"
    )
    assert config.shadow.record == tmp_path / "s.db"
    with Shadow.from_config(config, parts=parts) as shadow:
        assert (shadow.answers, shadow.run_rate, shadow.text) == ("small", 0.1, True)
        assert (tmp_path / "s.db").exists()
    with Shadow.from_config(config, parts=parts, record=tmp_path / "other.jsonl", run_rate=0.0) as shadow:
        assert (shadow.run_rate, (tmp_path / "other.jsonl").exists()) == (0.0, True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{answers: large}", "shadow.record: this key is missing"),
        ("{answers: both, record: s.db}", "shadow.answers: is 'both'; it should be 'large' or 'small'"),
        ("{answers: large, record: s.db, rate: 2}", "shadow.rate: is 2"),
        ("{answers: large, record: s.db, run_rate: 0.1}", "add budget: {large_tokens: 100000}"),
        ("{answers: large, record: s.db, file: x}", "shadow.file: unknown key"),
    ],
)
def test_a_wrong_section_is_refused_by_name(load, section, message):
    with pytest.raises(SettingsError) as caught:
        load(section)
    assert message in str(caught.value)


@pytest.mark.parametrize(("answers", "script"), [("large", LARGE), ("small", SMALL)])
def test_a_graph_and_a_chat_model_answer_with_one_model_while_the_shadow_routes(load, parts, answers, script):
    config = load(f"{{answers: {answers}, record: s.jsonl}}")
    with Shadow.from_config(config, parts=parts) as shadow:
        graph = build_graph(config, parts=parts, shadow=shadow)
        result = graph.invoke({"messages": [("user", "What is 2 + 2?")]})
        assert result["messages"][-1].text == "\n\n".join(script)
        assert TrimChatModel(graph=graph).invoke("What is 2 + 2?").text == "\n\n".join(script)
        assert shadow.drain(10)
    first, second = read_shadow(config.shadow.record)
    assert first["error"] is second["error"] is None
    assert first["would"]["first_large"] == 1
    assert first["answered"]["seconds"] == result["trim"]["seconds"]
    assert first["answered"]["output_tokens"] == result["messages"][-1].usage_metadata["output_tokens"]


async def test_an_answer_that_a_call_has_routed_is_not_the_application_s(load, parts):
    config = load("{answers: large, record: s.jsonl}")
    with Shadow.from_config(config, parts=parts) as shadow:
        graph = build_graph(config, parts=parts, shadow=shadow)
        await graph.ainvoke({"messages": [("user", "x")]}, context=TrimContext(threshold=0.5))
        assert (shadow.counts.unsuitable, shadow.counts.submitted) == (1, 0)


def test_the_section_is_never_ignored(load, parts):
    config = load("{answers: large, record: s.jsonl}")
    with pytest.raises(
        SettingsError, match=r"pass shadow=Shadow.from_config\(config\), or leave the section out"
    ):
        build_graph(config, parts=parts)
    with (
        Shadow.from_config(config, parts=parts, answers="small") as other,
        pytest.raises(SettingsError, match=r"shadow\.answers is large"),
    ):
        build_graph(config, parts=parts, shadow=other)


def test_measurements_route_in_spite_of_the_section(load, parts):
    graph = build_graph(for_measuring(load("{answers: large, record: s.jsonl}")), parts=parts)
    assert graph.invoke({"messages": [("user", "x")]})["trim"]["steps"] == {"small": 2, "large": 1}


def test_a_shadow_without_the_section_says_what_it_needs(load, tmp_path, parts):
    (tmp_path / "trim.yaml").write_text(MODELS)
    with pytest.raises(SettingsError, match="no section shadow, and record not given"):
        Shadow.from_config(tmp_path / "trim.yaml", answers="large", parts=parts)


def test_a_graph_calls_its_observer_with_conversation_and_answer(load, parts):
    seen = []

    class Observer:
        answers = "small"

        def observe(self, messages, answer):
            seen.append(([message.text for message in messages], answer))

    config = load("{answers: small, record: s.jsonl}")
    build_graph(config, parts=parts, shadow=Observer()).invoke({"messages": [("user", "x")]})
    ((asked, answer),) = seen
    assert asked == ["x"]
    assert isinstance(answer, AIMessage)


def test_a_shadow_in_a_process_gets_the_configuration_as_json(load, tmp_path, monkeypatch):
    from trim_graph.shadow.process import ShadowProcess, _built

    section = "{answers: large, record: s.db, run_rate: 0.5, budget: {large_tokens: 20000}, process: true}"
    config = load(f"{section}\nsettings: {{max_steps: 7}}\nprices: {{large: {{output: 2}}}}")
    monkeypatch.chdir("/")
    with ShadowProcess.from_config(config) as shadow:
        assert (shadow.answers, shadow.priced) == ("large", True)
        built = _built({**json.loads(json.dumps(shadow._settings)), "ledger": None})
    assert (built.settings.max_steps, built.settings.prices.large.output) == (7, 2)
    assert (repr(built.policy), built.run_rate, built.priced) == ("threshold(0.5)", 0.5, True)
    with ShadowProcess.from_config(load("{answers: large, record: s.db}")) as unpriced:
        assert not _built({**unpriced._settings, "ledger": None}).priced
