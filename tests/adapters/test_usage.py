"""Models that do not report their tokens: estimated where nothing hangs on them, else refused."""

from __future__ import annotations

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage

from trim_graph import Budget, ChatModelContractError, SettingsError, create_trim_chat_model
from trim_graph.adapters import ContinueByPrompt
from trim_graph.adapters.prompted.protocol import DONE, START
from trim_graph.agents import TrimMiddleware
from trim_graph.budget.ledger import MemoryLedger
from trim_graph.policies import large_only, small_only, threshold
from trim_graph.testing import ScriptedChatModel, ScriptedToolModel

STEPS = ["one", "two and", "so it is \\boxed{4}"]
BOTH = pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])


def words(text):
    return len(text.split())


class Silent(ScriptedChatModel):
    """Does not report its tokens; LangChain's default would count them by the tokenizer of GPT-2."""

    def _generate(self, *args, **kwargs):
        result = super()._generate(*args, **kwargs)
        result.generations[0].message.usage_metadata = None
        return result


class Zero(Silent):
    """Reports no tokens for a text."""

    def _generate(self, *args, **kwargs):
        result = super()._generate(*args, **kwargs)
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        result.generations[0].message.usage_metadata = usage
        return result


class Counting(Silent):
    """Has a tokenizer of its own."""

    def get_num_tokens(self, text):
        return words(text)


class Hosted(Counting):
    """Is asked by prompt."""

    continues_exactly = False

    def _rest(self, prefix):
        return f"{START}\n{super()._rest(prefix)}\n{DONE}"


def estimated(writer, by):
    return (
        f"the {writer} model does not report its tokens: they are estimated by {by}, and reasoning that it "
        "does not show is not among them"
    )


@BOTH
def test_a_model_counts_by_its_own_tokenizer_and_the_notes_say_so_once(make, asynchronously):
    rig = make(Counting(script=STEPS), STEPS, scores={}, budget=Budget(large_tokens=100))
    result = rig.solve(asynchronously=asynchronously)["trim"]
    assert result["notes"] == [estimated("small", "Counting.get_num_tokens")]
    spent = result["usage"]["small"]
    assert spent["output_tokens"] == sum(map(words, STEPS))
    assert spent["input_tokens"] >= sum(words(m.text) for call in rig.small.calls for m in call["messages"])


@BOTH
@pytest.mark.parametrize("kind", [Silent, Zero])
def test_a_function_counts_for_both_models(make, kind, asynchronously):
    rig = make(kind(script=STEPS), kind(script=STEPS), {"two and": 0.1}, count_tokens=words)
    result = rig.solve(asynchronously=asynchronously)["trim"]
    assert result["notes"] == [estimated(writer, "count_tokens") for writer in ("small", "large")]
    assert result["usage"]["large"]["output_tokens"] == words("two and")


@BOTH
def test_all_that_a_model_asked_by_prompt_reads_and_writes_is_counted(make, asynchronously):
    for hosted in (Hosted(script=["one"]), ContinueByPrompt(Hosted(script=["one"]))):
        rig = make(hosted, policy=small_only())
        result = rig.solve(asynchronously=asynchronously)["trim"]
        assert estimated("small", "Hosted.get_num_tokens") in result["notes"]
        spent, inner = result["usage"]["small"], getattr(hosted, "model", hosted)
        assert spent["output_tokens"] == words(f"{START} one {DONE}")
        (call,) = inner.calls
        assert spent["input_tokens"] == sum(words(message.text) for message in call["messages"])


@BOTH
@pytest.mark.parametrize("kind", [Silent, Zero])
def test_langchains_default_is_not_asked(make, monkeypatch, kind, asynchronously):
    loaded = []
    monkeypatch.setattr("langchain_core.language_models.base._get_token_ids_default_method", loaded.append)
    with pytest.raises(ChatModelContractError, match=r"small model's answer has .*count_tokens="):
        make(kind(script=STEPS), policy=small_only()).solve(asynchronously=asynchronously)
    assert not loaded


def test_a_tokenizer_that_cannot_be_loaded_is_a_clear_error(make):
    class Offline(Silent):
        def get_num_tokens(self, text):
            raise ConnectionError("no network")

    with pytest.raises(ChatModelContractError, match=r"Offline.get_num_tokens could not .*no network"):
        make(Offline(script=STEPS), policy=small_only()).ask()


@BOTH
@pytest.mark.parametrize("kind", [Counting, Hosted])
@pytest.mark.parametrize("limit", ["large_tokens", "large_cost", "quota"])
def test_a_limit_on_the_tokens_is_not_kept_by_a_guess(make, kind, limit, asynchronously):
    budget = {"large_tokens": {"large_tokens": 99}, "large_cost": {"large_cost": 9.0}}.get(limit)
    given = {"budget": budget, "prices": {"large": {"output": 1.0}}}
    if limit == "quota":
        given = {"quotas": {"user": {"large_tokens": 99}}, "ledger": MemoryLedger()}
    options = {"context": {"user": "ada"}} if limit == "quota" else {}
    rig = make(large=kind(script=STEPS), policy=large_only(), **given)
    with pytest.raises(
        ChatModelContractError, match=r"large model's answer has no usage_metadata.*count_tok"
    ):
        rig.solve(asynchronously=asynchronously, **options)
    # What the user says counts.
    given |= {"ledger": MemoryLedger()} if limit == "quota" else {}
    rig = make(large=kind(script=STEPS), policy=large_only(), count_tokens=words, **given)
    result = rig.solve(asynchronously=asynchronously, **options)["trim"]
    assert result["usage"]["large"]["output_tokens"] >= words(" ".join(STEPS))
    assert estimated("large", "count_tokens") in result["notes"]


def test_limits_that_no_tokens_hang_on_let_a_guess_pass(make):
    budget = Budget(large_calls=9, seconds=60)
    result = make(large=Counting(script=STEPS), policy=large_only(), budget=budget).ask()["trim"]
    assert result["stopped"] == "finished"


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", None, True])
def test_a_function_that_counts_wrongly_is_refused_by_name(make, wrong):
    with pytest.raises(SettingsError, match="count_tokens returned"):
        make(Silent(script=STEPS), policy=small_only(), count_tokens=lambda text: wrong).ask()


def test_a_function_that_fails_is_named(make):
    rig = make(Silent(script=STEPS), policy=small_only(), count_tokens=lambda text: 1 / 0)
    with pytest.raises(SettingsError, match=r"count_tokens failed .*ZeroDivisionError"):
        rig.ask()


def test_what_is_no_function_is_refused_when_the_graph_is_built(make):
    with pytest.raises(SettingsError, match="count_tokens is 'cl100k'"):
        make(count_tokens="cl100k")
    with pytest.raises(SettingsError, match="count_tokens is 3"):
        TrimMiddleware(ScriptedToolModel(script=["x"]), policy=large_only(), count_tokens=3)


def test_the_chat_model_takes_the_function_too():
    small, large = Silent(script=STEPS), Silent(script=STEPS)
    model = create_trim_chat_model(small, large, policy=small_only(), count_tokens=words)
    assert model.invoke("?").usage_metadata["output_tokens"] == sum(map(words, STEPS))


class SilentAgent(ScriptedToolModel):
    def _generate(self, *args, **kwargs):
        result = super()._generate(*args, **kwargs)
        result.generations[0].message.usage_metadata = None
        return result


def look_up(name: str) -> str:
    """Look a name up."""
    return "four"


@BOTH
async def test_turns_of_an_agent_are_counted_likewise(asynchronously):
    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {"name": "it"}, "id": "1"}])

    async def ask(**options):
        routing = TrimMiddleware(
            SilentAgent(script=[call, "It is four."]),
            lambda question, steps: [0.0] * len(steps),
            policy=threshold(0.5),
            **options,
        )
        agent = create_agent(SilentAgent(script=[call, "three."]), [look_up], middleware=[routing])
        given = {"messages": [("user", "?")]}
        return (await agent.ainvoke(given) if asynchronously else agent.invoke(given))["trim"]

    with pytest.raises(ChatModelContractError, match="small model's answer has no usage_metadata"):
        await ask()
    result = await ask(count_tokens=words, budget=Budget(large_tokens=500))
    assert result["usage"]["large"]["output_tokens"] > words("It is four.")
    assert result["notes"] == [estimated(writer, "count_tokens") for writer in ("small", "large")]
