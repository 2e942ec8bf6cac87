"""The models of a routed agent as people have them: with fallbacks, bound, retried, chosen by the call."""

import asyncio

import pytest
from agent_rig import LARGE, QUESTION, SMALL, build, multiply, talk, turns
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field

from trim_graph import Budget, ModelPrice, Prices, SettingsError
from trim_graph.adapters import ModelServerError
from trim_graph.agents import TrimMiddleware
from trim_graph.budget.ledger import MemoryLedger
from trim_graph.errors import FailedAttempts
from trim_graph.policies import large_only, small_only
from trim_graph.testing import ScriptedChatModel, ScriptedScorer, ScriptedToolModel

both_ways = pytest.mark.parametrize("asynchronously", [False, True])
THREAD = {"configurable": {"thread_id": "1"}}
ALWAYS_LARGE = {"policy": large_only(), "scorer": None}
ALWAYS = {"large": ALWAYS_LARGE, "small": {"policy": small_only(), "scorer": None}}


class Down(ScriptedToolModel):
    """Fails, and reports its usage as its adapter would; or reports nothing."""

    used: tuple[int, int] | None = None
    times: int = 99
    error: type[Exception] = ModelServerError

    def _generate(self, messages, *given, **options):
        if not self.times:
            return super()._generate(messages, *given, **options)
        self.times -= 1
        self.calls.append({name: options.get(name) for name in ("max_tokens", "timeout")})
        if self.error is not ModelServerError:
            raise self.error("down")
        error = ModelServerError("down", begun=True)
        if self.used is not None:
            read, written = self.used
            error.attempts = FailedAttempts(count=2, input_tokens=read, output_tokens=written, unknown=0)
        raise error


class Answer(BaseModel):
    """The answer."""

    value: int


# Fallbacks


@both_ways
@pytest.mark.parametrize("writer", ["small", "large"])
def test_a_fallback_writes_the_turn_with_the_same_tools(writer, asynchronously):
    down, spare = Down(script=["-"]), ScriptedToolModel(script=LARGE, name="spare")
    rig = build(**{writer: down.with_fallbacks([spare])}, **ALWAYS[writer])
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, 12)]
    assert [call["tools"] for call in spare.calls] == [["multiply", "query"]] * 2
    assert result["trim"]["steps"][writer] == 2
    assert {turn.response_metadata["model_name"] for turn in turns(result)} == {"spare"}
    assert [note for note in result["trim"]["notes"] if "fallback" in note] == [
        f"the {writer} model failed, so its fallback was asked: ModelServerError: down"
    ]
    assert (len(down.calls), len(spare.calls)) == (2, 2)


@both_ways
def test_tokens_of_the_model_that_failed_are_counted_where_it_reports_them(asynchronously):
    down, spare = Down(script=["-"], used=(50, 7)), ScriptedToolModel(script=["LARGE answer"])
    rig = build(large=down.with_fallbacks([spare]), **ALWAYS_LARGE, budget=Budget(large_tokens=100))
    spend = rig.ask(asynchronously=asynchronously)["trim"]["usage"]
    assert spend["large"]["output_tokens"] == 7 + spare.calls[0]["tokens"]
    assert spend["large"]["input_tokens"] == 50 + spare.calls[0]["prompt_tokens"]
    assert (spend["unaccounted_tokens"], spend["large"]["calls"]) == (0, 2)
    assert (spend["large"]["failed_attempts"], spend["large"]["failed_calls"]) == (2, 0)
    assert [down.calls[0]["max_tokens"], spare.calls[0]["max_tokens"]] == [100, 93]


@both_ways
def test_unreported_tokens_are_charged_in_full_and_the_fallback_has_what_is_left(asynchronously):
    down, spare = Down(script=["-"], error=ConnectionError), ScriptedToolModel(script=["LARGE answer"])
    rig = build(
        large=down.with_fallbacks([spare]), **ALWAYS_LARGE, budget=Budget(large_tokens=50), max_step_tokens=30
    )
    summary = rig.ask(asynchronously=asynchronously)["trim"]
    assert summary["tokens"]["large_unaccounted"] == 30
    assert [down.calls[0]["max_tokens"], spare.calls[0]["max_tokens"]] == [30, 20]


@pytest.mark.parametrize("way", ["raise", "accept"])
@both_ways
def test_a_fallback_for_which_nothing_is_left_is_not_asked(way, asynchronously):
    down, spare = Down(script=["-"]), ScriptedToolModel(script=["LARGE answer"])
    rig = build(
        large=down.with_fallbacks([spare]), **ALWAYS_LARGE, budget=Budget(large_tokens=30), on_large_error=way
    )
    if way == "raise":
        with pytest.raises(ModelServerError, match="down"):
            rig.ask(asynchronously=asynchronously)
    else:
        summary = rig.ask(asynchronously=asynchronously)["trim"]
        assert (summary["steps"], summary["tokens"]["large_unaccounted"]) == ({"small": 2, "large": 0}, 30)
    assert spare.calls == []


@both_ways
def test_accounts_are_charged_for_both(asynchronously):
    ledger = MemoryLedger()
    down, spare = Down(script=["-"]), ScriptedToolModel(script=["LARGE answer"])
    rig = build(
        large=down.with_fallbacks([spare]),
        **ALWAYS_LARGE,
        ledger=ledger,
        quotas={"thread": {"large_tokens": 50}},
        max_step_tokens=30,
    )
    rig.ask(config=THREAD, asynchronously=asynchronously)
    used = ledger.used("thread:1")
    assert (used.large_tokens, used.large_calls) == (30 + spare.calls[0]["tokens"], 2)
    assert spare.calls[0]["max_tokens"] == 20


@pytest.mark.parametrize("way", ["raise", "accept"])
def test_where_all_fail_the_declared_way_out_applies_and_all_are_charged(way):
    models = [Down(script=["-"]) for _ in range(3)]
    rig = build(
        large=models[0].with_fallbacks(models[1:]),
        **ALWAYS_LARGE,
        max_step_tokens=30,
        on_large_error=way,
        max_steps=1,
    )
    if way == "raise":
        with pytest.raises(ModelServerError, match="down"):
            rig.ask()
        return
    summary = rig.ask()["trim"]
    assert (summary["steps"], summary["tokens"]["large_unaccounted"]) == ({"small": 1, "large": 0}, 90)
    assert summary["usage"]["large"]["failed_calls"] == 1


def test_a_model_whose_fallback_answers_is_not_given_up():
    down, spare = Down(script=["-"], used=(1, 1)), ScriptedToolModel(script=talk(5, 1, "l"))
    rig = build(large=down.with_fallbacks([spare]), **ALWAYS_LARGE)
    assert rig.ask()["trim"]["steps"] == {"small": 0, "large": 6}
    assert len(down.calls) == 6


def test_only_the_errors_that_are_named_lead_to_a_fallback():
    down, spare = Down(script=["-"], error=ConnectionError), ScriptedToolModel(script=["LARGE answer"])
    large = down.with_fallbacks([spare], exceptions_to_handle=(TimeoutError,))
    with pytest.raises(ConnectionError):
        build(large=large, **ALWAYS_LARGE).ask()
    assert spare.calls == []


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_a_fallback_gives_structured_output(strategy):
    right = '{"value": 144}' if strategy is ProviderStrategy else _call_of_answer()
    large = Down(script=["-"]).with_fallbacks([ScriptedToolModel(script=[right])])
    rig = build(large=large, **ALWAYS_LARGE, agent={"response_format": strategy(Answer)})
    assert rig.ask()["structured_response"] == Answer(value=144)


def _call_of_answer():
    made = multiply(1, 1, by="l")
    return AIMessage("", tool_calls=[{**made.tool_calls[0], "name": "Answer", "args": {"value": 144}}])


def test_each_model_is_asked_by_its_own_names():
    class BaseChatOpenAI(ScriptedToolModel):
        """Takes a time limit with a call, as its name says."""

    down, spare = Down(script=["-"], used=(1, 1)), BaseChatOpenAI(script=["LARGE answer"])
    for first, second in ((down, spare), (spare, down)):
        large = first.with_fallbacks([second])
        build(large=large, **ALWAYS_LARGE, budget=Budget(seconds=60)).ask()
    assert [0 < call["timeout"] <= 60 for call in spare.calls] == [True, True]
    assert [call["timeout"] for call in down.calls] == [None]


@both_ways
def test_a_limit_on_cost_holds_over_fallbacks(asynchronously):
    down, spare = Down(script=["-"], used=(0, 10)), ScriptedToolModel(script=["LARGE answer"])
    prices = Prices(large=ModelPrice(input=0.0, output=1e6))
    rig = build(
        large=down.with_fallbacks([spare]), **ALWAYS_LARGE, prices=prices, budget=Budget(large_cost=30.0)
    )
    rig.ask(asynchronously=asynchronously)
    assert spare.calls[0]["max_tokens"] == 20


# Bound, and chosen by the call


class Choosable(ScriptedToolModel):
    """A model of which the call may choose what it says."""

    said: str = "by default"

    def _turn(self, messages):
        return AIMessage(self.said)


@both_ways
@pytest.mark.parametrize("writer", ["small", "large"])
def test_what_a_call_chooses_of_a_model_reaches_it(writer, asynchronously):
    model = Choosable(script=["-"]).configurable_fields(said=ConfigurableField("said"))
    rig = build(**{writer: model}, **ALWAYS[writer])
    for config, said in ((None, "by default"), ({"configurable": {"said": "as chosen"}}, "as chosen")):
        result = rig.ask(config=config, asynchronously=asynchronously)
        assert turns(result)[0].text == said


@pytest.mark.parametrize("lazily", [False, True])
def test_an_alternative_that_a_call_chooses_writes(lazily):
    other = Choosable(script=["-"], said="the other")
    model = Choosable(script=["-"]).configurable_alternatives(
        ConfigurableField("which"), other=(lambda: other) if lazily else other
    )
    rig = build(large=model, **ALWAYS_LARGE)
    assert turns(rig.ask())[0].text == "by default"
    assert turns(rig.ask(config={"configurable": {"which": "other"}}))[0].text == "the other"


@pytest.fixture
def named(monkeypatch):
    """Models that `init_chat_model` makes by name; what it was asked for."""
    made = []

    def make(model=None, *, model_provider=None, **options):
        made.append((model, options))
        name = str(model).rpartition(":")[2]
        return Choosable(script=["-"], said=f"I am {name}", name=name)

    monkeypatch.setattr("langchain.chat_models.base._init_chat_model_helper", make)
    return made


@both_ways
@pytest.mark.parametrize("writer", ["small", "large"])
@pytest.mark.parametrize("wrapped", ["plain", "configured", "fallbacks"])
def test_a_model_that_langchain_makes_for_the_call_writes(named, writer, wrapped, asynchronously):
    model = init_chat_model(
        "openai:first", configurable_fields=("model",), config_prefix="our", temperature=0
    )
    if wrapped == "configured":
        model = model.with_config(tags=["ours"])
    elif wrapped == "fallbacks":
        model = Down(script=["-"]).with_fallbacks([model])
    rig = build(**{writer: model}, **ALWAYS[writer])
    for config, said in (
        (None, "I am first"),
        ({"configurable": {"our_model": "second"}}, "I am second"),
        ({"configurable": {"other_model": "third"}}, "I am first"),
    ):
        result = rig.ask(config=config, asynchronously=asynchronously)
        assert turns(result)[0].text == said
        assert result["trim"]["steps"][writer] == 1
    assert all(options["temperature"] == 0 for _, options in named)


def test_a_model_that_only_the_call_names_is_taken(named):
    rig = build(large=init_chat_model(), **ALWAYS_LARGE)
    assert named == []
    assert turns(rig.ask(config={"configurable": {"model": "openai:late"}}))[0].text == "I am late"


def test_what_is_bound_to_a_model_counts_with_tools_too():
    class Sampled(ScriptedToolModel):
        seen: list[dict] = Field(default_factory=list)

        def _generate(self, messages, *given, **options):
            self.seen.append({"seed": options.pop("seed", None)})
            return super()._generate(messages, *given, **options)

    tagged = []

    class Tags(ScriptedToolModel):
        def _generate(self, messages, stop=None, run_manager=None, **options):
            tagged.append(set(run_manager.tags))
            return super()._generate(messages, stop, run_manager, **options)

    model = Sampled(script=LARGE)
    build(large=model.bind(seed=3, max_tokens=40).bind(seed=4), **ALWAYS_LARGE).ask()
    assert [call["seed"] for call in model.seen] == [4, 4]
    assert {call["max_tokens"] for call in model.calls} == {40}
    assert [call["tools"] for call in model.calls] == [["multiply", "query"]] * 2
    build(large=Tags(script=LARGE).with_config(tags=["ours"]), **ALWAYS_LARGE).ask()
    assert tagged
    assert all({"ours", "trim:large"} <= tags for tags in tagged)


# What is refused


PLAIN = ScriptedToolModel(script=LARGE)
REFUSED = {
    "a function": (
        RunnableLambda(lambda messages: AIMessage("x")),
        "pass a LangChain chat model, or its name",
    ),
    "a chain": (
        ChatPromptTemplate.from_messages([("placeholder", "{m}")]) | PLAIN,
        "pass a LangChain chat model",
    ),
    "a retry": (PLAIN.with_retry(), "use the model's own max_retries"),
    "a retry inside": (PLAIN.with_fallbacks([PLAIN.with_retry()]), "use the model's own max_retries"),
    "tools of its own": (PLAIN.bind_tools([]), "has tools bound to it.*give them to create_agent"),
    "errors as input": (PLAIN.with_fallbacks([PLAIN], exception_key="error"), "exception_key='error'"),
    "an alternative": (
        PLAIN.configurable_alternatives(ConfigurableField("w"), other=RunnableLambda(str)),
        "pass a LangChain chat model",
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_large_model_that_cannot_write_turns_is_refused_when_it_is_given(wrong):
    model, reported = REFUSED[wrong]
    with pytest.raises(SettingsError, match=rf"large .*{reported}"):
        TrimMiddleware(model, ScriptedScorer(), policy=large_only())


@pytest.mark.parametrize("wrong", [name for name in REFUSED if name != "an alternative"])
def test_an_agents_own_model_that_cannot_is_refused_before_any_is_asked(wrong):
    model, reported = REFUSED[wrong]
    large = ScriptedToolModel(script=LARGE)
    agent = create_agent(model, [], middleware=[TrimMiddleware(large, policy=large_only())])
    before = len(PLAIN.calls)
    with pytest.raises(SettingsError, match=rf"small .*{reported}"):
        agent.invoke({"messages": [("user", QUESTION)]})
    assert (large.calls, len(PLAIN.calls)) == ([], before)


@pytest.mark.parametrize("writer", ["small", "large"])
def test_a_fallback_that_takes_no_tools_is_refused_before_any_is_asked(writer):
    textual = ScriptedChatModel(script=["one"])
    rig = build(**{writer: ScriptedToolModel(script=SMALL).with_fallbacks([textual])})
    with pytest.raises(SettingsError, match=rf"the {writer} model, ScriptedChatModel, takes no tools"):
        rig.ask()


def test_a_thread_goes_on_with_a_fallback(tmp_path):
    down, spare = Down(script=LARGE, times=1), ScriptedToolModel(script=LARGE, name="spare")
    rig = build(
        large=down.with_fallbacks([spare]),
        **ALWAYS_LARGE,
        agent={"checkpointer": InMemorySaver(), "interrupt_before": ["tools"]},
    )
    rig.ask(config=THREAD)
    result = asyncio.run(rig.agent.ainvoke(None, THREAD))
    assert [turn.response_metadata["model_name"] for turn in turns(result)] == ["spare", "scripted"]
