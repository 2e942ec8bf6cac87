"""Subjects of checks, their findings, and the sample questions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from trim_graph.adapters.base import ScorableStep
from trim_graph.adapters.prompted.chat import ContinueByPrompt, as_writer
from trim_graph.adapters.vllm.client import VLLMServer, check_base_url
from trim_graph.budget import Budget
from trim_graph.config.schema import (
    CascadeScorerConfig,
    FileSettings,
    LLMJudgeScorer,
    MinimumOfScorers,
    asked_by,
)
from trim_graph.errors import counted


@dataclass(frozen=True, slots=True)
class Sample:
    """A question, the steps of a right solution as far as given, and a wrong form of the last of them."""

    question: str
    right: tuple[str, ...]
    wrong: str

    @property
    def right_steps(self) -> list[ScorableStep]:
        """The right solution as a scorer takes it."""
        return [_step(text) for text in self.right]

    @property
    def wrong_steps(self) -> list[ScorableStep]:
        """The same with the last step wrong."""
        return [_step(text) for text in (*self.right[:-1], self.wrong)]


def _step(text: str) -> ScorableStep:
    return ScorableStep(text, mean_token_probability=0.9, lowest_window_probability=0.9)


GENERAL = (
    Sample(
        "A baker fills 6 boxes with 8 rolls each and sells 15 rolls. How many rolls are left?",
        (
            "The baker has 6 * 8 = 48 rolls in the boxes.",
            "After selling 15 rolls, 48 - 15 = 33 rolls are left. The answer is \\boxed{33}.",
        ),
        "After selling 15 rolls, 48 - 15 = 43 rolls are left. The answer is \\boxed{43}.",
    ),
    Sample(
        "Solve 3x + 7 = 22 for x.",
        (
            "Subtract 7 from both sides: 3x = 15.",
            "Divide both sides by 3: x = 5. The answer is \\boxed{5}.",
        ),
        "Multiply both sides by 3: x = 45. The answer is \\boxed{45}.",
    ),
    Sample(
        "A train travels 180 km in 3 hours. How far does it travel in 5 hours at the same speed?",
        (
            "The speed of the train is 180 / 3 = 60 km per hour.",
            "In 5 hours it travels 60 * 5 = 300 km. The answer is \\boxed{300}.",
        ),
        "In 5 hours it travels 60 + 5 = 65 km. The answer is \\boxed{65}.",
    ),
    Sample(
        "What is the area of a rectangle with a perimeter of 26 and a width of 4?",
        (
            "Half of the perimeter is 13, so the length is 13 - 4 = 9.",
            "The area is 9 * 4 = 36. The answer is \\boxed{36}.",
        ),
        "The area is 26 * 4 = 104. The answer is \\boxed{104}.",
    ),
    Sample(
        "A coat costs 80 dollars. It is reduced by 25 percent. What does it cost now?",
        (
            "The reduction is 25 percent of 80 dollars, which is 0.25 * 80 = 20 dollars.",
            "The coat now costs 80 - 20 = 60 dollars. The answer is \\boxed{60}.",
        ),
        "The coat now costs 80 + 20 = 100 dollars. The answer is \\boxed{100}.",
    ),
    Sample(
        "How many positive divisors does 12 have?",
        (
            "The prime factorisation is 12 = 2^2 * 3.",
            "The number of divisors is (2 + 1)(1 + 1) = 6. The answer is \\boxed{6}.",
        ),
        "The number of divisors is 2 + 1 = 3. The answer is \\boxed{3}.",
    ),
)
"""For any model that has learnt mathematics. Each wrong step is wrong beyond doubt."""

_LAST_TWO = "Always keep only the last two digits. What is the result?"
ARITHMETIC = (
    Sample(
        f"Let the number be 66. Step 1: add 28. Step 2: add 34. Step 3: double the result. {_LAST_TWO}",
        ("Step 1: 66 + 28 = 94.", "Step 2: 94 + 34 = 128, keep 28."),
        "Step 2: 94 + 34 = 138, keep 38.",
    ),
    Sample(
        f"Let the number be 87. Step 1: subtract 61. Step 2: increase it by 37. {_LAST_TWO}",
        ("Step 1: 87 - 61 = 26.",),
        "Step 1: 87 - 61 = 16.",
    ),
    Sample(
        f"Let the number be 49. Step 1: take the remainder after dividing by 4. Step 2: add 50. {_LAST_TWO}",
        ("Step 1: 49 mod 4 = 1.",),
        "Step 1: 49 mod 4 = 3.",
    ),
    Sample(
        f"Begin with 22. Step 1: add 68. Step 2: take it twice. Step 3: subtract 16. {_LAST_TWO}",
        ("Step 1: 22 + 68 = 90.",),
        "Step 1: 22 + 68 = 80.",
    ),
    Sample(
        f"Let the number be 72. Step 1: multiply by 5. Step 2: add 4. Step 3: double the result. {_LAST_TWO}",
        ("Step 1: 72 * 5 = 360, keep 60.", "Step 2: 60 + 4 = 64.", "Step 3: 64 * 2 = 128, keep 28."),
        "Step 3: 64 * 4 = 256, keep 56.",
    ),
    Sample(
        f"Start with 67. Step 1: subtract 3. Step 2: multiply by 6. Step 3: decrease it by 13. {_LAST_TWO}",
        ("Step 1: 67 - 3 = 64.", "Step 2: 64 * 6 = 384, keep 84."),
        "Step 2: 64 * 6 = 394, keep 94.",
    ),
)
"""For the arithmetic models, which read nothing else; the wrong steps are some that their small one wrote."""

PROBE_TEXT = "Start with 47. Step 1: add 38, so 47 + 38 = 85.\n\nThen \\boxed{85}."
"""Text that tokenizers encode differently."""


def reads_arithmetic(tokens: list[int]) -> bool:
    """Returns whether these are the tokens of `PROBE_TEXT` by the tokenizer of the arithmetic models."""
    from tokenizers import Tokenizer

    from trim_graph.examples.arithmetic import SMALL

    own = Tokenizer.from_file(str(SMALL / "tokenizer.json"))
    return bool(own.encode(PROBE_TEXT, add_special_tokens=False).ids == tokens)


T = TypeVar("T")


@dataclass(slots=True)
class Subject:
    """A part under examination.

    Attributes:
        part: ``small``, ``large`` or ``scorer``; ``scorer-1`` and on of a scorer that combines several.
        entry: Its mapping in the configuration, of a judge behind a server that of its model; of a replica,
            with its own address alone.
        adapter: The chat model or scorer, which tries each call once.
        server: The server behind it; None for what runs in this process or elsewhere.
        settings: Of a run.
        budget: Of a run.
        timeout: Most seconds for a check.
        served: What the server reports of the model.
        unauthorised: What it said when it refused the key.
        samples: Questions with steps that this model can read.
        seconds: Median time of a shortest call.
        tokens_per_second: Speed of writing.
        scores: What the scorer gave for right and for wrong steps.
        known: Anything else that a later check needs.
        replica: Whether it is one of several replicas.
    """

    part: str
    entry: Any
    adapter: Any
    server: VLLMServer | None
    settings: FileSettings
    budget: Budget
    timeout: float
    served: dict[str, Any] = field(default_factory=dict)
    unauthorised: str = ""
    samples: tuple[Sample, ...] = ()
    seconds: float | None = None
    tokens_per_second: float | None = None
    scores: tuple[list[float], list[float]] | None = None
    known: dict[str, Any] = field(default_factory=dict)
    replica: bool = False

    @property
    def name(self) -> str:
        """Name in findings: the part, and which of its replicas."""
        return f"{self.part} at {self.on_server.root}" if self.replica else self.part

    @property
    def is_scorer(self) -> bool:
        """Whether it rates steps."""
        return self.part.startswith("scorer")

    @property
    def by_prompt(self) -> bool:
        """Whether it is asked by prompt for each step."""
        return isinstance(self.adapter, ContinueByPrompt)

    @property
    def on_server(self) -> VLLMServer:
        """The server, for checks that run only where there is one."""
        assert self.server is not None
        return self.server


def subjects_of(
    part: str, entry: Any, settings: FileSettings, budget: Budget, timeout: float
) -> list[Subject]:
    """Makes what is examined of a part: each replica where ``base_url`` lists several; see `subject_of`."""
    asked = asked_by(entry)
    urls = getattr(asked, "base_url", None)
    if not isinstance(urls, list):
        return [subject_of(part, entry, settings, budget, timeout)]
    single = [asked.model_copy(update={"base_url": url}) for url in urls]
    if isinstance(entry, LLMJudgeScorer):
        single = [entry.model_copy(update={"model": model}) for model in single]
    subjects = [subject_of(part, one, settings, budget, timeout) for one in single]
    for subject in subjects:
        subject.replica = len(subjects) > 1
    return subjects


def subject_of(part: str, entry: Any, settings: FileSettings, budget: Budget, timeout: float) -> Subject:
    """Makes the adapter of a part, impatient, and finds its server.

    Raises:
        ValueError: The adapter refuses its settings.
        ImportError: What it needs is not installed.
    """
    hasty = _hasty(entry, timeout)
    # As a run has it: a model that cannot carry on a text is asked by prompt.
    scorer = part.startswith("scorer")
    adapter = hasty.build() if scorer else as_writer(hasty.build(part), settings.delimiter)
    asked = asked_by(entry)
    if asked.type not in ("vllm", "vllm_prm", "vllm_generative_prm"):
        return Subject(part, entry, adapter, None, settings, budget, timeout)
    server = VLLMServer(
        root=check_base_url(asked.base_url),
        api_key_env=asked.api_key_env,
        read_timeout=timeout,
        max_retries=0,
    )
    return Subject(part, asked, adapter, server, settings, budget, timeout)


def _hasty(entry: Any, timeout: float) -> Any:
    """Returns a part that tries each call once and waits ``timeout`` seconds, and the parts within it too."""
    # The entry's own read_timeout is judged against the speed that is seen.
    # A check that asks again wants an answer of the model, not a score that is kept.
    changed: dict[str, Any] = {"max_retries": 0, "read_timeout": timeout, "cache_size": 0}
    changed = {name: value for name, value in changed.items() if hasattr(entry, name)}
    if isinstance(entry, LLMJudgeScorer):
        changed["model"] = _hasty(entry.model, timeout)
    elif isinstance(entry, CascadeScorerConfig):
        changed |= {"first": _hasty(entry.first, timeout), "second": _hasty(entry.second, timeout)}
    elif isinstance(entry, MinimumOfScorers):
        changed["scorers"] = [_hasty(scorer, timeout) for scorer in entry.scorers]
    return entry.model_copy(update=changed)


async def in_thread(work: Callable[[], T]) -> T:
    """Runs what blocks in a daemon thread, which a time limit may leave behind without hanging the exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def main() -> None:
        try:
            outcome: Any = work()
            set_it: Callable[[Any], None] = done.set_result
        except BaseException as error:
            outcome, set_it = error, done.set_exception
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, set_it, outcome)

    threading.Thread(target=main, name="trim-graph doctor", daemon=True).start()
    return await done


Status = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        status: ``ok``; ``warning``: works, but could be better, or could not be checked; ``error``: does
            not do what a run needs; ``skipped``: an earlier error leaves nothing to check.
        found: What was seen, one sentence without a full stop.
        fix: What to do about an error or a warning.
        ends: Whether further checks of the same part would say nothing more.
        part: ``small``, ``large``, ``scorer`` or ``set-up``; with its address, where a part has replicas.
        check: Name of the check.
    """

    status: Status
    found: str
    fix: str = ""
    ends: bool = False
    part: str = ""
    check: str = ""

    @classmethod
    def ok(cls, found: str) -> Finding:
        """Returns the finding of a check that is passed."""
        return cls("ok", found)

    @classmethod
    def warning(cls, found: str, fix: str = "") -> Finding:
        """Returns a finding that is worth knowing, and no error."""
        return cls("warning", found, fix)

    @classmethod
    def error(cls, found: str, fix: str = "", *, ends: bool = False) -> Finding:
        """Returns a finding for which a run would fail or go wrong."""
        return cls("error", found, fix, ends)

    @property
    def sentence(self) -> str:
        """The problem and its fix, in full."""
        fix = f"; fix it: {self.fix}" if self.fix else ""
        return f"{self.part}, {self.check}: what is wrong: {self.found}{fix}"


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in order."""

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        """Findings for which a run would fail or go wrong."""
        return [finding for finding in self.findings if finding.status == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Findings that are worth knowing, and no errors."""
        return [finding for finding in self.findings if finding.status == "warning"]

    @property
    def verdict(self) -> str:
        """The whole in a sentence."""
        warnings = f", {counted(len(self.warnings), 'warning')}" if self.warnings else ""
        if not self.errors:
            return f"no error{warnings}: this set-up does what a run needs"
        parts = ", ".join(dict.fromkeys(finding.part for finding in self.errors))
        return f"{counted(len(self.errors), 'error')} ({parts}){warnings}: fix them before a run"

    def record(self) -> dict[str, Any]:
        """Returns the report, JSON-native."""
        return {
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "verdict": self.verdict,
            "checks": [
                {name: getattr(finding, name) for name in ("part", "check", "status", "found", "fix")}
                for finding in self.findings
            ],
        }

    def without(self, secrets: Iterable[str]) -> Report:
        """Returns the report with every secret masked, should a server have echoed one."""
        hidden = [secret for secret in secrets if secret]

        def masked(text: str) -> str:
            for secret in hidden:
                text = text.replace(secret, "***")
            return text

        return Report(
            tuple(
                Finding(f.status, masked(f.found), masked(f.fix), f.ends, f.part, f.check)
                for f in self.findings
            )
        )
