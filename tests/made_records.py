"""Records that nobody ran, and graphs that only answer."""

from langchain_core.messages import AIMessage
from langgraph.types import Overwrite

from trim_graph.evaluation import Question
from trim_graph.evaluation.records import TOKENS, WorkItem, new_record


def a_record(index, correct=None, **known):
    return new_record(WorkItem(index, 0, Question("?")), correct=correct, **known)


def ended(text, *, large_tokens=0, unaccounted_tokens=0, cost=0.0):
    """The update that ends a run with this text."""
    nothing = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "calls": 0}
    usage = {"small": nothing, "scorer": nothing, "large": {**nothing, "output_tokens": large_tokens}}
    summary = {
        "usage": {**usage, "unaccounted_tokens": unaccounted_tokens},
        "tokens": dict.fromkeys(TOKENS, 0),
        "answer": None,
        "stopped": "finished",
        "notes": [],
        "cost": cost,
    }
    none: dict = {"steps": Overwrite([]), "scores": Overwrite({}), "decisions": Overwrite([])}
    return {"trim": summary, "messages": [AIMessage(text)], **none}


class Answering:
    """A graph whose runs end at once, with what a function makes of the question."""

    def __init__(self, answer):
        self.answer = answer

    async def astream(self, given, config=None, **options):
        yield "updates", {"finalize": await self.answer(given["messages"][0][1])}
