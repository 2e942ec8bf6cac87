"""What Studio asks of the server, asked through the server's own API."""

from __future__ import annotations

import pytest

PROBLEM = (
    "Start with 47. Step 1: add 38. Step 2: multiply by 7. Step 3: subtract 21. "
    "Step 4: take the remainder after dividing by 9. "
    "Always keep only the last two digits. What is the result?"
)
QUESTION = {"messages": [{"role": "user", "content": PROBLEM}]}


@pytest.fixture
def assistant(client) -> str:
    (found,) = client.assistants.search(graph_id="trim")
    return found["assistant_id"]


def test_the_drawn_graph_has_the_five_nodes_and_labelled_edges(client, assistant):
    drawn = client.assistants.get_graph(assistant)
    nodes = {node["id"] for node in drawn["nodes"]} - {"__start__", "__end__"}
    assert nodes == {"route", "generate_step", "score_step", "ask_human", "finalize"}
    labels = {(edge["source"], edge["target"]): edge.get("data") for edge in drawn["edges"]}
    assert labels["route", "generate_step"] == "write a step"
    assert labels["route", "ask_human"] == "ask a human"
    assert labels["route", "finalize"] == "done"
    assert labels["generate_step", "score_step"] == "score decides"
    assert labels["generate_step", "route"] == "no score needed"


def test_the_settings_of_a_run_are_offered_with_descriptions(client, assistant):
    fields = client.assistants.get_schemas(assistant)["context_schema"]["properties"]
    assert {"threshold", "policy", "budget", "max_steps"} <= set(fields)
    assert all(field["description"] for field in fields.values())


def test_a_run_is_streamed_step_by_step(client):
    events = [
        chunk.data
        for chunk in client.runs.stream(None, "trim", input=QUESTION, stream_mode="custom")
        if chunk.event == "custom"
    ]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    steps = [event["text"] for event in events if event["event"] == "accepted"]
    assert len(steps) == 5
    assert steps[-1].startswith("The answer is")


def test_a_run_goes_by_the_settings_it_is_given(client):
    def writers(**context):
        return client.runs.wait(None, "trim", input=QUESTION, context=context)["trim"]["steps"]

    assert writers(policy="small_only") == {"small": 5, "large": 0}
    assert writers(policy="large_only") == {"small": 0, "large": 5}
    assert writers(threshold=0.0) == {"small": 5, "large": 0}
    assert writers(threshold=1.0, budget={"large_calls": 1})["large"] == 1
    assert sum(writers(max_steps=2).values()) == 2


def test_a_state_is_edited_forked_and_replayed(client):
    thread = client.threads.create()["thread_id"]
    client.runs.wait(thread, "trim", input=QUESTION, interrupt_after=["score_step"])
    stopped = client.threads.get_state(thread)
    assert stopped["next"] == ["route"]
    draft = stopped["values"]["draft"]
    assert draft["score"] > 0.9, "kept, if nobody interferes"

    edited = client.threads.update_state(
        thread, {"draft": {**draft, "score": 0.0}}, checkpoint=stopped["checkpoint"]
    )
    forked = client.runs.wait(thread, "trim", input=None, checkpoint=edited["checkpoint"])
    assert forked["trim"]["steps"]["large"] >= 1
    assert (
        client.threads.get_history(thread, limit=100)[0]["values"]["decisions"][0]["decision"] == "regenerate"
    )

    replayed = client.runs.wait(thread, "trim", input=None, checkpoint=stopped["checkpoint"])
    assert replayed["messages"][-1]["content"].startswith(draft["text"])
    first = client.threads.get_state(thread)["values"]["decisions"][0]
    assert (first["decision"], first["score"]) == ("accept", draft["score"])


def test_a_second_question_on_the_thread_starts_clean(client):
    thread = client.threads.create()["thread_id"]
    client.runs.wait(thread, "trim", input=QUESTION)
    second = {"messages": [{"role": "user", "content": PROBLEM.replace("47", "12")}]}
    done = client.runs.wait(thread, "trim", input=second)
    assert [message["type"] for message in done["messages"]] == ["human", "ai", "human", "ai"]
    assert sum(done["trim"]["steps"].values()) == 5


def test_a_run_asks_a_human_and_takes_the_answer(client):
    thread = client.threads.create()["thread_id"]
    asks = {"threshold": 1.0, "budget": {"large_calls": 1, "on_exhausted": "ask"}}
    client.runs.wait(thread, "trim", input=QUESTION, context=asks)
    waiting = client.threads.get_state(thread)
    assert waiting["next"] == ["ask_human"]
    (asked,) = waiting["tasks"][0]["interrupts"]
    assert asked["value"]["limit"] == "large_calls"
    assert len(asked["value"]["steps"]) == 1
    assert asked["value"]["draft"]["writer"] == "small"

    wrong = client.runs.wait(thread, "trim", command={"resume": {"mor": 1}}, raise_error=False)
    assert "mor" in str(wrong)
    assert client.threads.get_state(thread)["tasks"][0]["interrupts"][0]["value"] == asked["value"]

    client.runs.wait(thread, "trim", command={"resume": {"step": asked["value"]["draft"]["text"]}})
    done = client.runs.wait(thread, "trim", command={"resume": {"continue_with": "small"}})
    assert done["trim"]["stopped"] == "finished"
    assert done["trim"]["steps"] == {"small": 3, "large": 1, "human": 1}
