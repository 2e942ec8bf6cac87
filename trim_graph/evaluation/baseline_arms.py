"""Baselines that one would otherwise pick, on the same models through the same adapters.

Those with a number to choose get the spend of one arm, the first policy; router and cascade, which cost no
further call, also spends at fixed shares, so that they have a curve.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import SettingsError, TrimError
from trim_graph.policies.files import save_policy
from trim_graph.training.query_router import read_examples, train_query_router
from trim_graph.training.traces import read_traces

from .arms import Arm
from .by_kind import fit_kinds, policy_of_kinds
from .composed import compose, limit_for, pairs, read_signals, unsureness
from .course import Course
from .equal_spend import DIGITS, Dial
from .piloting import first_token_entropies
from .run_files import ArmSettings, Row
from .run_writing import write_json
from .summarising import LARGE
from .validation import Validation

BASELINES = {
    "router": "a trained classifier gives whole questions to one model; needs validation questions",
    "cascade": "the large model answers where the small one's whole answer has improbable tokens",
    "prm": "a draft stays at a score of 0.7 and more (reward-guided speculative decoding)",
    "judge": "a draft stays at 7 of 9 of a judge (speculative reasoning); needs a judge",
    "entropy": "the entropy of a step's first token says who writes it",
    "kind": "the kind of step alone decides; needs validation questions",
}
SHARES = (0.25, 0.5, 0.75)
"""Shares of large tokens at which router and cascade are told besides."""
PRM_LEVEL = 0.7
"""ArXiv 2501.19324: reward-guided speculative decoding accepts steps of this reward and more."""
JUDGE_LEVEL = 7 / 9
"""ArXiv 2504.07891: speculative reasoning accepts steps rated 7 of 9 and more."""


class Missing(SettingsError):
    """A baseline cannot be run with what is given."""


@dataclass
class Baselines:
    """What baselines need besides the course of the evaluation.

    Attributes:
        course: Runs arms.
        folder: Of the run.
        beside: The arm whose spend they get.
        validation: Where there are validation questions.
        scorer_type: The type of the configuration's scorer.
        judge_name: What the judge is, for the record, where one is given.
        pattern: What tells kinds of steps.
        seed: Of the training.
    """

    course: Course
    folder: Path
    beside: str
    validation: Validation | None
    scorer_type: str | None
    judge_name: dict[str, Any] | None
    pattern: str
    seed: int

    async def run(self, names: Sequence[str], *, all_of_them: bool) -> None:
        """Run baselines.

        Args:
            names: Of `BASELINES`.
            all_of_them: One that cannot be run is then passed over with a warning.

        Raises:
            TrimError: One cannot be run, or its runs fail.
        """
        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "router": self.router,
            "cascade": self.cascade,
            "prm": self.prm,
            "judge": self.rated_by_judge,
            "entropy": self.entropy,
            "kind": self.kind,
        }
        for name in names:
            try:
                await ways[name]()
            except (TrimError, ImportError) as error:
                if not all_of_them:
                    raise
                self.course.warnings.append(f"baseline {name} was not run: {error}")

    async def prm(self) -> None:
        """Accept drafts by the reward model's score alone, at the published level."""
        if self.scorer_type in (None, "llm_judge", "token_probability"):
            raise Missing("it needs a process reward model as the scorer")
        await self.course.run(_fixed("prm", {"type": "threshold", "t": PRM_LEVEL}))

    async def rated_by_judge(self) -> None:
        """Accept drafts by a judge's digit, at the published level."""
        if self.judge_name is None:
            raise Missing("it needs a judge: --judge large, or {type: llm_judge, model: {...}}")
        policy = {"type": "threshold", "t": JUDGE_LEVEL}
        arm = Arm("judge-7of9", "baseline", "judge", policy)
        settings = ArmSettings(**{**arm.settings, "policy": {**policy, "scorer": self.judge_name}})
        await self.course.harness.run(arm.name, settings, policy, judged=True)

    async def cascade(self) -> None:
        """Let the large model answer where the small one's whole answer is improbable."""
        self._composed("cascade", {"type": "answer_cascade"}, unsureness, both=True)

    async def router(self) -> None:
        """Let a classifier give whole questions to one model."""
        validation = self._validated()
        small, large = await validation.run("small"), await validation.run("large")
        router = train_query_router(read_examples([small, large]), seed=self.seed).policy
        file = self.folder / "router.json"
        save_policy(router, file, dataset=validation.dataset.identity(), questions=validation.n)
        policy = {"type": "query_router", "file": file.name}
        self._composed("router", policy, lambda row: router.probability(row["question"]), both=False)

    async def kind(self) -> None:
        """Regenerate by the kind of step alone."""
        validation = self._validated()
        traces = await validation.run("small")
        kinds = fit_kinds(read_traces(traces), self.pattern)
        told = [one._asdict() for one in kinds]
        write_json(self.folder / "kinds.json", {"pattern": self.pattern, "kinds": told})
        dial = Dial("kind", lambda part: policy_of_kinds(kinds, self.pattern, part))
        await self.course.at_spends_of([self.beside], dial, "baseline")

    async def entropy(self) -> None:
        """Let the entropy of a step's first token say who writes it."""
        entropies = await first_token_entropies(self.course.harness)
        dial = Dial("entropy", lambda part: {"type": "entropy_probe", "limit": _upper(entropies, part)})
        await self.course.at_spends_of([self.beside], dial, "baseline")

    def _composed(
        self, family: str, policy: dict[str, Any], signal: Callable[[Row], float], *, both: bool
    ) -> None:
        """Put arms together of the models alone: at the spend of the other arm, and at fixed shares."""
        harness, course = self.course.harness, self.course
        plan = harness.plan
        whole, own = course.spend(LARGE), course.spend(self.beside)
        signals, tokens = read_signals(pairs(self.folder, plan.n, plan.samples), signal)
        targets: dict[float, list[str]] = {own: [self.beside]} if own > 0 else {}
        targets.update((share * whole, []) for share in SHARES if share * whole != own)
        for target, beside in targets.items():
            limit = limit_for(signals, tokens, target)
            part = round(float((signals > limit).mean()), DIGITS)
            arm = f"{family}-{part:g}"
            if arm in harness.done:
                continue
            settings = ArmSettings(
                kind="baseline", family=family, policy={**policy, "limit": limit, "questions": part}
            )
            if beside:
                settings["beside"] = list(beside)
            harness.forget(arm)  # its limit may have been another on fewer questions
            harness.note(arm, settings)
            rows = pairs(self.folder, plan.n, plan.samples)
            compose(self.folder, arm, rows, signal, limit, both=both)
            harness.take(arm)

    def _validated(self) -> Validation:
        if self.validation is None:
            raise Missing("it is fitted on questions other than these: give --validation")
        return self.validation


def _fixed(name: str, policy: dict[str, Any]) -> Arm:
    return Arm(f"{name}-{policy['t']:g}", "baseline", name, policy)


def _upper(values: Sequence[float], part: float) -> float:
    """Return the limit above which this part of the values lies; below all of them for 1."""
    ordered = sorted(values)
    kept = round((1 - part) * len(ordered))
    return round(ordered[kept - 1], 9) if kept else 0.0
