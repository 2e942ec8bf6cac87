import asyncio

import pytest
from made_records import Answering, ended

from trim_graph import create_trim_graph
from trim_graph.evaluation import Question, run_arm
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer


class Slow(Answering):
    """Answers the later questions first, and counts how many are under way."""

    def __init__(self):
        super().__init__(self.solve)
        self.now = self.most = 0

    async def solve(self, question):
        number = int(question)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep((10 - number % 10) / 1000)
        self.now -= 1
        if number == 3:
            raise ConnectionError("gone")
        return ended(f"is {number}", large_tokens=number, unaccounted_tokens=100)


def questions(n):
    return [Question(str(i), lambda text, i=i: text == f"is {i}") for i in range(n)]


@pytest.mark.parametrize(("concurrency", "n"), [(1, 5), (4, 20), (50, 8)])
async def test_order_bound_and_errors(concurrency, n):
    graph, seen = Slow(), []
    outcomes = await run_arm(graph, questions(n), concurrency=concurrency, on_record=seen.append)
    assert graph.most == min(concurrency, n)
    assert [outcome["index"] for outcome in outcomes] == list(range(n))
    assert [outcome["error"] for outcome in outcomes if outcome["error"]] == ["ConnectionError: gone"]
    assert [outcome["correct"] for outcome in outcomes] == [i != 3 for i in range(n)]
    assert outcomes[4]["large_tokens"] == 104
    assert sorted(seen, key=lambda outcome: outcome["index"]) == outcomes


async def test_a_grade_that_fails_is_an_error_of_its_question():
    (outcome,) = await run_arm(Slow(), [Question("1", lambda text: 1 / 0)])
    assert outcome["error"] == "grader of question 0: ZeroDivisionError: division by zero"
    assert not outcome["correct"]


async def test_no_question_gives_no_outcome():
    assert await run_arm(Slow(), []) == []


async def test_a_concurrency_below_1_is_refused():
    with pytest.raises(ValueError, match="concurrency=0"):
        await run_arm(Slow(), questions(1), concurrency=0)


async def test_being_cancelled_leaves_what_was_done():
    seen, begun = [], asyncio.Event()

    def keep(outcome):
        seen.append(outcome)
        begun.set()

    task = asyncio.create_task(run_arm(Slow(), questions(500), concurrency=2, on_record=keep))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 < len(seen) < 500


async def test_a_question_run_by_a_graph_is_graded_and_counted():
    graph = create_trim_graph(
        ScriptedChatModel(script=["wrong", "the answer is \\boxed{3}"]),
        ScriptedChatModel(script=["right", "no"]),
        ScriptedScorer({"wrong": 0.0}),
        policy=threshold(0.5),
    )
    (outcome,) = await run_arm(graph, [Question("?", lambda text: "\\boxed{3}" in text)])
    assert outcome["correct"]
    assert outcome["answer"] == "3"
    assert outcome["large_tokens"] == 2
