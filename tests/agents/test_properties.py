"""Whatever models, policy, budget and failures do: only accepted calls run, and every token is counted."""

import asyncio

from agent_rig import build, calling
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ToolMessage

from trim_graph import Budget
from trim_graph.policies import Policy
from trim_graph.testing import ScriptedToolModel

turn_calls = st.lists(st.integers(0, 99), max_size=2)
scripts = st.lists(st.tuples(turn_calls, st.integers(0, 12), st.booleans()), min_size=5, max_size=5)
decisions = st.lists(st.sampled_from(["accept", "regenerate", "handover"]), min_size=5, max_size=5)
writers = st.lists(st.sampled_from(["small", "small", "large"]), min_size=5, max_size=5)
budgets = st.builds(
    Budget,
    large_tokens=st.none() | st.integers(1, 40),
    large_calls=st.none() | st.integers(1, 3),
    min_tokens=st.just(1),
    on_exhausted=st.sampled_from(["small", "stop"]),
)


class ListedDecisions(Policy):
    """Answers from lists, by the turn."""

    needs_score = False

    def __init__(self, writers, decisions):
        self.writers, self.decisions = writers, decisions

    def next_writer(self, observation):
        return self.writers[observation.index]

    def decide(self, observation):
        return self.decisions[observation.index]


class Unsteady(ScriptedToolModel):
    """Fails where its script says so."""

    failing: tuple[bool, ...]

    def _generate(self, messages, *given, **options):
        done = sum(isinstance(message, AIMessage) for message in messages)
        if self.failing[done]:
            raise ConnectionError("no")
        return super()._generate(messages, *given, **options)


def model(script, name):
    turns = [
        calling(
            *(("multiply", {"a": number, "b": 1}) for number in calls),
            text=" ".join([name] * words),
            by=f"{name}{index}-",
        )
        for index, (calls, words, _) in enumerate(script)
    ]
    # The agent's last turn, if it comes that far.
    return Unsteady(script=[*turns[:-1], "the end"], name=name, failing=tuple(fails for *_, fails in script))


@settings(max_examples=80, deadline=None)
@given(scripts, scripts, writers, decisions, budgets, st.booleans())
def test_only_accepted_calls_run_and_every_token_counts(
    small, large, wanted, decided, budget, asynchronously
):
    rig = build(
        model(small, "tiny"),
        model(large, "huge"),
        scorer=None,
        policy=ListedDecisions(wanted, decided),
        budget=budget,
        max_steps=5,
        on_small_error="large",
        on_large_error="accept",
    )
    given = {"messages": [("user", "Go.")]}
    result = asyncio.run(rig.agent.ainvoke(given)) if asynchronously else rig.agent.invoke(given)
    turns = [message for message in result["messages"] if isinstance(message, AIMessage)]
    answers = {m.tool_call_id: m for m in result["messages"] if isinstance(m, ToolMessage)}
    calls = [call for turn in turns for call in turn.tool_calls]

    assert sorted(call[1] for call in rig.ran) == sorted(
        call["args"]["a"] for call in calls if answers[call["id"]].status != "error"
    )
    assert len(calls) == len(answers)
    reported = result["trim"]
    named = {"tiny": "small", "huge": "large"}
    wrote = [named.get(turn.response_metadata["model_name"]) for turn in turns]
    assert reported["steps"] == {writer: wrote.count(writer) for writer in ("small", "large")}
    assert (wrote[-1] is None) == (reported["stopped"] != "finished")
    for writer, one in (("small", rig.small), ("large", rig.large)):
        spent = reported["usage"][writer]["output_tokens"]
        unreported = reported["usage"][writer].get("unaccounted_tokens", 0)  # of calls that have failed
        assert spent - unreported == sum(call["tokens"] for call in one.calls)
        assert reported["tokens"][writer] + reported["tokens"][f"{writer}_discarded"] == spent
    charged = reported["usage"]["large"]["output_tokens"] + reported["usage"]["unaccounted_tokens"]
    assert budget.large_tokens is None or charged <= budget.large_tokens
    assert budget.large_calls is None or reported["usage"]["large"]["calls"] <= budget.large_calls


@settings(max_examples=60, deadline=None)
@given(
    st.lists(scripts, min_size=2, max_size=3),
    writers,
    budgets,
    st.sampled_from(["small", "large"]),
    st.booleans(),
)
def test_fallbacks_of_a_writer_keep_within_its_budget_too(written, wanted, budget, writer, asynchronously):
    models = [model(script, f"{writer}-{index}") for index, script in enumerate(written)]
    rig = build(
        **{writer: models[0].with_fallbacks(models[1:])},
        scorer=None,
        policy=ListedDecisions(wanted, ["accept"] * 5),
        budget=budget,
        max_steps=5,
        max_step_tokens=12,
        on_small_error="large",
        on_large_error="accept",
    )
    given = {"messages": [("user", "Go.")]}
    result = asyncio.run(rig.agent.ainvoke(given)) if asynchronously else rig.agent.invoke(given)
    reported = result["trim"]
    answered = sum(call["tokens"] for one in models for call in one.calls)
    unreported = reported["usage"][writer].get("unaccounted_tokens", 0)  # of calls that have failed
    assert reported["usage"][writer]["output_tokens"] - unreported == answered
    charged = reported["usage"]["large"]["output_tokens"] + reported["usage"]["unaccounted_tokens"]
    assert budget.large_tokens is None or charged <= budget.large_tokens
    assert budget.large_calls is None or reported["usage"]["large"]["calls"] <= budget.large_calls
    assert reported["usage"][writer]["calls"] >= sum(len(one.calls) for one in models)
