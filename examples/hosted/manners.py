"""How a scripted chat model answers a request for a step: as asked, or as models that do not listen."""

from __future__ import annotations

import math
from typing import Any, Literal

from trim_graph.adapters.prompted.protocol import DONE, START
from trim_graph.examples.arithmetic.problems import Problem, expected_step, kind_of_step

from .scripted_server import Answer

Manner = Literal["obedient", "forgetful", "talkative"]
"""``forgetful``: no marks, and an empty answer when all is written. ``talkative``: an introduction, all that
was written once more, and all that remains, at every call."""

_HARD = ("multiply", "remainder")
_DELIMITER = "\n\n"


class Arithmetic:
    """Two writers and a judge who know some problems; the small writer errs where it is hard.

    Args:
        known: The problems.
        manner: Of the writers, when asked by prompt.
    """

    def __init__(self, known: list[Problem], manner: Manner = "obedient") -> None:
        self.known = known
        self.manner = manner

    def __call__(self, body: dict[str, Any]) -> Answer:
        """Answers a request as one of the models ``small``, ``large`` and ``judge``."""
        turns = [(turn["role"], turn["content"]) for turn in body["messages"]]
        problem = next(p for p in self.known if any(p.question in content for _, content in turns))
        if body["model"] == "judge":
            return _judged(problem, turns[-1][1])
        written = next((content for role, content in reversed(turns) if role == "assistant"), "")
        before = [piece for piece in written.split(_DELIMITER) if piece.strip()]
        steps = _remaining(problem, before, errs=body["model"] == "small")
        if body.get("continue_final_message") or "stop" in body:
            return _continued(steps, body.get("stop"))
        return Answer(self._asked(steps, before, all_of_it="all that remains" in turns[-1][1]))

    def _asked(self, steps: list[str], before: list[str], *, all_of_it: bool) -> str:
        answered = steps if all_of_it or self.manner == "talkative" else steps[:1]
        text = _DELIMITER.join(answered)
        if self.manner == "forgetful":
            return text
        if self.manner == "talkative":
            text = _DELIMITER.join([*before, text])
        done = f"\n{DONE}" if len(answered) == len(steps) else ""
        lead = "Sure, here is the next step:\n\n" if self.manner == "talkative" else ""
        return f"{lead}{START}\n{text}{done}" if steps else DONE


def _remaining(problem: Problem, before: list[str], *, errs: bool) -> list[str]:
    """Returns the steps that this writer would write, one after the other."""
    steps: list[str] = []
    while (step := _next(problem, [*before, *steps], errs=errs)) is not None:
        steps.append(step)
    return steps


def _next(problem: Problem, before: list[str], *, errs: bool) -> str | None:
    if before and "boxed" in before[-1]:
        return None
    right = expected_step(problem, before)
    if right is None:  # something before it cannot be read
        return "The answer is \\boxed{0}."
    wrong = errs and kind_of_step(problem, len(before)) in _HARD
    return f"{right[:-1].rsplit(' ', 1)[0]} 1." if wrong else right


def _continued(steps: list[str], stop: list[str] | None) -> Answer:
    """Answers as a vLLM server continues a text: stops at the string it was given, and says so."""
    if stop and len(steps) > 1:
        return Answer(steps[0], stop_reason=stop[0])
    return Answer(_DELIMITER.join(steps))


def _judged(problem: Problem, prompt: str) -> Answer:
    """Answers nine or one, with some doubt; the prompt is that of `LLMJudge`."""
    fence = next(line for line in prompt.splitlines() if line.startswith("===="))
    parts = [part.strip() for part in prompt.split(f"{fence}\n")]
    before = [] if parts[-4] == "(none)" else parts[-4].split(_DELIMITER)
    sure, other = ("9", "1") if parts[-2] == _next(problem, before, errs=False) else ("1", "9")
    tops = [{"token": sure, "logprob": math.log(0.9)}, {"token": other, "logprob": math.log(0.1)}]
    content = [{**tops[0], "bytes": None, "top_logprobs": [{**top, "bytes": None} for top in tops]}]
    return Answer(sure, logprobs={"content": content, "refusal": None})
