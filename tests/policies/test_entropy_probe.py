"""One token of the small model first: who is asked what, what it costs, and what can go wrong."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph.budget import Budget
from trim_graph.config import make_config
from trim_graph.errors import ChatModelContractError, SettingsError
from trim_graph.policies import (
    Choice,
    Observation,
    Policy,
    entropy_probe,
    large_only,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.settings import TrimContext
from trim_graph.testing import ScriptedChatModel

STEPS = ["small one", "small two", "small three", "so it is \\boxed{4}"]
SEEN = Observation(question="q", index=0, max_steps=9)


def small_model(entropies, **fields):
    return ScriptedChatModel(script=STEPS, name="tiny", entropies=entropies, **fields)


def probes(model):
    return [call for call in model.calls if call["max_tokens"] == 1]


def rig_of(make, entropies=(0.2, 2.0, 1.0, 0.0), policy=None, **settings):
    return make(small_model(entropies), policy=policy or entropy_probe(1.0), **settings)


# The policy


@pytest.mark.parametrize(("entropy", "writer"), [(None, "probe"), (1.0, "small"), (1.01, "large")])
def test_it_compares_the_entropy_with_its_limit(entropy, writer):
    assert entropy_probe(1.0).next_writer(replace(SEEN, probe_entropy=entropy)) == writer


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf")])
def test_a_limit_that_cannot_be_meant_is_refused(limit):
    with pytest.raises(SettingsError, match=f"entropy_probe is {limit}"):
        entropy_probe(limit)


def test_it_makes_a_family():
    assert repr(entropy_probe(1.0).with_limit(0.5)) == "entropy_probe(0.5)"


class Asks(Policy):
    """Answers from a list by turns, and remembers what it was asked."""

    def __init__(self, before, after="small"):
        self.before, self.after = before, after

    def next_writer(self, observation):
        answer = self.before if observation.probe_entropy is None else self.after
        return Choice(answer, (observation.memory or 0) + 1)


ranked = ("small", "large", "large_to_end")


@given(
    st.sampled_from([*ranked, "probe"]), st.sampled_from(ranked), st.sampled_from([*ranked, "probe"]),
    st.sampled_from(ranked), st.booleans(),
)  # fmt: skip
def test_a_combination_says_what_its_parts_say_once_the_probe_is_known(left, later, right, also, either):
    """Whatever is left out, the answer is that of asking both after the probe."""
    parts = Asks(left, later if left == "probe" else left), Asks(right, also if right == "probe" else right)
    policy = parts[0] | parts[1] if either else parts[0] & parts[1]
    first = policy.next_writer(SEEN)
    probed = policy.next_writer(replace(SEEN, probe_entropy=1.0))
    pick = max if either else min
    assert probed.value == pick((part.after for part in parts), key=ranked.index)
    if "probe" not in (left, right):
        assert first == probed
    elif first.value != "probe":  # it has not asked, because the probe could not have changed it
        assert first.value == probed.value == ("large_to_end" if either else "small")
    else:
        assert first.memory is None


def test_a_part_that_wanted_the_probe_remembers_nothing_where_it_was_not_needed():
    policy = Asks("probe") | Asks("large_to_end")
    assert policy.next_writer(replace(SEEN, memory=[5, 7])) == Choice("large_to_end", [5, 8])


# What a graph makes of it


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_the_large_model_writes_the_steps_whose_first_token_is_unsure(make, asynchronously):
    rig = rig_of(make, scorer=None)
    result = rig.solve(asynchronously=asynchronously)
    assert result["messages"][-1].content == "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"
    assert result["trim"]["steps"] == {"small": 3, "large": 1}
    assert result["trim"]["decisions"] == {}


def test_a_probe_is_one_token_that_carries_on_the_accepted_steps(make):
    rig = rig_of(make, scorer=None)
    rig.ask()
    asked = probes(rig.small)
    prefixes = [m[-1].content if isinstance(m[-1], AIMessage) else "" for m in (c["messages"] for c in asked)]
    assert prefixes == [
        "",
        "small one\n\n",
        "small one\n\nLARGE two\n\n",
        "small one\n\nLARGE two\n\nsmall three\n\n",
    ]
    assert {call["stop"] and tuple(call["stop"]) for call in asked} == {None}
    assert len(rig.small.calls) == 4 + 3
    assert len(rig.large.calls) == 1


def test_its_token_prompt_and_call_are_spent_by_the_small_model_and_discarded(make):
    rig = rig_of(make, scorer=None)
    summary = rig.ask()["trim"]
    spent = summary["usage"]["small"]
    assert spent["calls"] == len(rig.small.calls) == 7
    assert spent["input_tokens"] == sum(call["prompt_tokens"] for call in rig.small.calls)
    assert summary["tokens"]["small_discarded"] == 4
    assert spent["output_tokens"] == summary["tokens"]["small"] + 4


def test_it_is_reported_to_the_stream_before_the_step(make):
    rig = rig_of(make, scorer=None)
    events = list(rig.graph.stream({"messages": [("user", "2 + 2?")]}, stream_mode="custom"))
    probed = [(e["event"], e["step"]) for e in events if e["event"] in ("probe", "accepted")]
    assert probed == [(event, step) for step in range(4) for event in ("probe", "accepted")]
    first = next(e for e in events if e["event"] == "probe")
    assert first == {
        "type": "trim",
        "event": "probe",
        "step": 0,
        "entropy": 0.2,
        "unobserved_probability": 0.0,
    }


async def test_its_call_has_a_tag_of_its_own_and_shows_no_text(make):
    rig = rig_of(make, scorer=None)
    tags, shown = [], []
    async for event in rig.graph.astream_events({"messages": [("user", "2 + 2?")]}):
        if event["event"] == "on_chat_model_start":
            tags.append({tag for tag in event["tags"] if tag.startswith("trim:")})
    async for chunk, _ in rig.graph.astream({"messages": [("user", "2 + 2?")]}, stream_mode="messages"):
        shown.append(chunk.content)
    assert tags[:2] == [{"trim:probe", "trim:small"}, {"trim:accepted", "trim:small"}]
    assert "".join(shown) == "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"


def test_with_a_threshold_drafts_are_scored_and_steps_of_the_probe_are_not(make):
    policy = entropy_probe(1.0) | threshold(0.5)
    rig = rig_of(make, (0.2, 0.3, 2.0, 0.0), policy, scores={"small two": 0.1})
    summary = rig.ask()["trim"]
    assert [step["writer"] for step in rig.steps()] == ["small", "large", "large", "small"]
    assert summary["decisions"] == {"accept": 2, "regenerate": 1}
    assert summary["usage"]["scorer"]["calls"] == 3


def test_while_the_large_model_stays_nothing_is_probed(make):
    policy = stay_on_large(entropy_probe(9.0) | threshold(0.5), 1)
    rig = rig_of(make, (0.0, 0.0, 0.0, 0.0), policy)
    assert [step["writer"][0] for step in rig.steps()] == ["s", "l", "l", "s"]
    assert len(probes(rig.small)) == 3


@pytest.mark.parametrize("policy", [entropy_probe(1.0) | large_only(), small_only() & entropy_probe(1.0)])
def test_what_a_probe_cannot_change_is_not_probed(make, policy):
    rig = rig_of(make, policy=policy, scorer=None)
    assert rig.ask()["trim"]["stopped"] == "finished"
    assert not probes(rig.small)


def test_memory_counts_a_probed_step_once(make):
    class Counting(Policy):
        needs_score = False

        def next_writer(self, observation):
            return Choice("small", (observation.memory or 0) + 1)

        def decide(self, observation):
            counted.append(observation.memory)
            return "accept"

    counted = []
    rig_of(make, (0.0,) * 4, Counting() | entropy_probe(1.0)).ask()
    assert counted == [1, 2, 3, 4]


def test_a_memory_that_comes_with_a_probe_is_dropped(make):
    seen = []

    class Noting(entropy_probe):
        def next_writer(self, observation):
            seen.append(observation.memory)
            return Choice(super().next_writer(observation), (observation.memory or 0) + 1)

    rig_of(make, policy=Noting(1.0), scorer=None).ask()
    assert seen == [None, None, 1, 1, 2, 2, 3, 3]


# Limits


def test_nothing_is_probed_when_nobody_could_act_on_it(make):
    rig = rig_of(make, (2.0,) * 4, scorer=None, budget=Budget(large_calls=1))
    summary = rig.ask()["trim"]
    assert summary["steps"] == {"small": 3, "large": 1}
    assert len(probes(rig.small)) == 1
    assert any("large_calls" in note for note in summary["notes"])
    assert summary["tokens"]["small_discarded"] == 1


def test_a_spent_budget_stops_the_run_if_so_configured(make):
    rig = rig_of(make, (2.0,) * 4, scorer=None, budget=Budget(large_calls=1, on_exhausted="stop"))
    summary = rig.ask()["trim"]
    assert (summary["stopped"], summary["steps"]) == ("budget", {"small": 0, "large": 1})


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_probe_that_hangs_ends_the_run_at_its_deadline(make, asynchronously):
    class Hanging(ScriptedChatModel):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            if kwargs["max_tokens"] == 1 and len(self.calls) > 1:
                import time

                time.sleep(1.2)
            return super()._generate(messages, stop, run_manager, **kwargs)

    rig = make(
        Hanging(script=STEPS, entropies=[]),
        policy=entropy_probe(1.0),
        scorer=None,
        budget=Budget(seconds=0.3),
    )
    summary = rig.solve(asynchronously=asynchronously)["trim"]
    assert (summary["stopped"], summary["steps"]["small"]) == ("deadline", 1)


class Exact(RunnableLambda):
    """A function that carries on a text exactly, and says so."""

    continues_exactly = True


def cut_probe(messages, **call):
    cut = call["max_tokens"] == 1
    metadata = {"finish_reason": "length", "stop_reason": None, "timed_out": True}
    done = {"finish_reason": "stop", "stop_reason": None}
    usage = {"input_tokens": 1, "output_tokens": 0 if cut else 2, "total_tokens": 1 if cut else 3}
    return AIMessage("" if cut else "x", usage_metadata=usage, response_metadata=metadata if cut else done)


def test_a_probe_cut_before_its_token_is_asked_again_and_at_last_given_up(make):
    rig = make(Exact(cut_probe), policy=entropy_probe(1.0), scorer=None)
    summary = rig.ask()["trim"]
    assert (summary["stopped"], summary["usage"]["small"]["calls"]) == ("no_step", 3)


# What can go wrong


def test_a_model_that_reports_no_entropy_is_refused_at_the_first_probe(make):
    rig = make(policy=entropy_probe(1.0), scorer=None, on_small_error="large")
    with pytest.raises(ChatModelContractError, match="small model does not report the entropy"):
        rig.ask()
    assert len(rig.small.calls) == 1


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_model_that_refuses_log_probabilities_has_no_fallback(make, asynchronously):
    class Refused(Exception):
        status_code = 400

    class Refusing(ScriptedChatModel):
        reports_entropy = False

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            raise Refused("Unsupported parameter: 'logprobs' is not supported with this model.")

    rig = make(Refusing(script=STEPS), policy=entropy_probe(1.0), scorer=None, on_small_error="large")
    with pytest.raises(ChatModelContractError, match=r"entropy.*refuses log-probabilities.*another policy"):
        rig.solve(asynchronously=asynchronously)
    assert not rig.large.calls


def openai_like(top):
    def answer(messages, **call):
        model = ScriptedChatModel(script=STEPS)
        wanted = {k: call.pop(k) for k in ("logprobs", "top_logprobs") if k in call}
        message = model.invoke(messages, **call)
        if wanted == {"logprobs": True, "top_logprobs": 20}:
            first = {"token": "x", "logprob": -0.1, "top_logprobs": top}
            message.response_metadata["logprobs"] = {"content": [first]}
        return message

    return Exact(answer)


def test_a_model_of_openais_api_is_asked_for_the_likeliest_tokens(make):
    top = [{"token": str(n), "logprob": -1.3862943611198906} for n in range(4)]
    rig = make(openai_like(top), policy=entropy_probe(1.0), scorer=None)
    events = rig.graph.stream({"messages": [("user", "2 + 2?")]}, stream_mode="custom")
    probed = [event["entropy"] for event in events if event["event"] == "probe"]
    assert probed == [pytest.approx(1.3862943611198906)] * 4


@pytest.mark.parametrize(
    "top", [[{}], [{"logprob": None}], [{"logprob": float("nan")}], [{"logprob": 3}], "x"]
)
def test_logprobs_that_are_none_are_refused(make, top):
    with pytest.raises(ChatModelContractError, match=r"small model.*entropy"):
        make(openai_like(top), policy=entropy_probe(1.0), scorer=None).ask()


def test_a_second_probe_for_the_same_step_is_refused(make):
    with pytest.raises(SettingsError, match=r"'probe'; expected one of small, large, large_to_end\n"):
        rig_of(make, policy=Asks("probe", "probe")).ask()


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_failed_probe_has_the_way_out_of_the_small_model(make, asynchronously):
    def fail(messages, **call):
        raise ConnectionError("gone")

    rig = make(RunnableLambda(fail), policy=entropy_probe(1.0), scorer=None, on_small_error="large")
    summary = rig.solve(asynchronously=asynchronously)["trim"]
    assert summary["steps"] == {"small": 0, "large": 4}
    assert summary["usage"]["small"]["failed_calls"] == 4
    with pytest.raises(ConnectionError):
        make(RunnableLambda(fail), policy=entropy_probe(1.0), scorer=None).ask()


@pytest.mark.parametrize("node", ["generate_step", "route"])
def test_a_run_stopped_between_probe_and_step_goes_on_as_if_it_had_not_been(make, node):
    rig = rig_of(make, scorer=None, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    result = rig.ask(config=config, interrupt_before=[node])
    for _ in range(40):
        if result.get("trim"):
            break
        json.dumps({k: v for k, v in result.items() if k != "messages"})
        result = rig.graph.invoke(None, config, interrupt_before=[node])
    assert result["trim"]["steps"] == {"small": 3, "large": 1}
    assert len(probes(rig.small)) == 4


def test_the_state_holds_two_numbers_of_a_probe(make):
    rig = rig_of(make, scorer=None, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    rig.ask(config=config)
    orders = [s.values.get("request") for s in rig.graph.get_state_history(config)]
    probed = [order["probe"] for order in orders if order and "probe" in order]
    assert {"entropy": 2.0, "unobserved_probability": 0.0} in probed
    assert all(set(probe) == {"entropy", "unobserved_probability"} for probe in probed)


def test_a_call_and_a_configuration_may_name_it(make):
    rig = rig_of(make, (0.2, 0.7, 0.0, 0.0), small_only(), scorer=None)
    context = TrimContext(policy={"type": "entropy_probe", "limit": 0.5})
    summary = asyncio.run(rig.aask(context=context))["trim"]
    assert summary["steps"] == {"small": 3, "large": 1}
    with pytest.raises(SettingsError, match="limit"):
        rig.ask(context=TrimContext(policy={"type": "entropy_probe", "limit": -1}))
    models = {"small": {"type": "example"}, "large": {"type": "example"}}
    config = make_config({**models, "policy": {"type": "entropy_probe", "limit": 0.5}})
    assert repr(config.policy.build()) == "entropy_probe(0.5)"
