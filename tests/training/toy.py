"""Questions and models without weights: the small model errs at some steps, the scorer mostly sees it."""

import random
from typing import ClassVar

from langchain_core.language_models import BaseChatModel

from trim_graph import create_trim_graph
from trim_graph.conversation import extract_answer
from trim_graph.evaluation import Question
from trim_graph.segmentation import DEFAULT_DELIMITER
from trim_graph.testing import ScriptedChatModel

LENGTH = 5


def errs(question, index):
    return random.Random(f"{question}:{index}").random() < 0.3


def step(writer, question, before):
    """Errors shift all that follows: a lost solution has texts of its own."""
    wrong = sum("wrong" in text for text in before)
    index = len(before)
    if index == LENGTH:
        return f"so it is \\boxed{{{wrong}}}"
    if index > LENGTH:
        return None
    text = f"step {index} of {wrong} in {question}" + " indeed" * (index % 3)
    return f"{text} wrong" if writer == "small" and errs(question, index) else text


def rest(writer, question, prefix):
    steps = [text for text in prefix.split(DEFAULT_DELIMITER) if text]
    wrote = []
    while (text := step(writer, question, [*steps, *wrote])) is not None:
        wrote.append(text)
    return DEFAULT_DELIMITER.join(wrote)


class ToyModel(BaseChatModel):
    continues_exactly: ClassVar[bool] = True
    writer: str
    answered: list = []  # noqa: RUF012
    fails: bool = False

    @property
    def _llm_type(self):
        return "toy"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        if self.fails:
            raise RuntimeError("the toy is broken")
        question = next(m.text for m in messages if m.type == "human")
        self.answered.append(question)
        model = ScriptedChatModel(script=lambda prefix: rest(self.writer, question, prefix), name=self.writer)
        return model._generate(messages, stop, run_manager, **kwargs)


class ToyScorer:
    """Depends on question, place and text; wrong steps score low."""

    def score(self, question, steps):
        scores = []
        for index, given in enumerate(steps):
            noise = random.Random(f"{question}:{index}:{given}").random()
            scores.append(0.4 * noise if "wrong" in given else 0.6 + 0.4 * noise)
        return scores

    async def ascore(self, question, steps):
        return self.score(question, steps)


def questions(n, first=0):
    def grade(text):
        return extract_answer(text) == "0"

    return [Question(f"question {number}", grade, "0") for number in range(first, first + n)]


def build(policy, settings=None, **changes):
    small, large = ToyModel(writer="small", **changes), ToyModel(writer="large")
    return create_trim_graph(small, large, ToyScorer(), policy=policy, **(settings or {}))
