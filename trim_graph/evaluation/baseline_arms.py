"""Baselines that one would otherwise pick, on the same models through the same adapters.

Those with a number to choose run at fixed `SHARES`, the points of a curve: of the large model's tokens for
router and cascade, of the small model's tokens for kind, of its steps for entropy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trim_graph.errors import SettingsError, TrimError
from trim_graph.policies.files import save_policy
from trim_graph.training.query_router import read_examples, train_query_router
from trim_graph.training.traces import read_traces

from .arms import Arm
from .by_kind import fit_kinds, policy_of_kinds
from .composed import compose, limit_for, pairs, read_signals, unsureness
from .harness import Harness
from .piloting import first_token_entropies
from .run_files import ArmSettings, Row
from .run_writing import write_json
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
"""Points of the curve of a baseline that has a number to choose."""
PRM_LEVEL = 0.7
"""ArXiv 2501.19324: reward-guided speculative decoding accepts steps of this reward and more."""
DIGITS = 4
"""Of a share of questions, as it is told."""
JUDGE_LEVEL = 7 / 9
"""ArXiv 2504.07891: speculative reasoning accepts steps rated 7 of 9 and more."""


class Missing(SettingsError):
    """A baseline cannot be run with what is given."""


@dataclass
class Baselines:
    """Runs the baselines of an evaluation.

    Attributes:
        harness: Runs arms; the models alone are done.
        validation: Where there are validation questions.
        scorer_type: The type of the configuration's scorer.
        judge_name: What the judge is, for the record, where one is given.
        pattern: What tells kinds of steps.
        seed: Of the training.
    """

    harness: Harness
    validation: Validation | None
    scorer_type: str | None
    judge_name: dict[str, Any] | None
    pattern: str
    seed: int

    async def run(self, names: Sequence[str], *, all_of_them: bool) -> list[str]:
        """Run baselines; return a warning for each one that was passed over.

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
        warnings = []
        for name in names:
            try:
                await ways[name]()
            except (TrimError, ImportError) as error:
                if not all_of_them:
                    raise
                warnings.append(f"baseline {name} was not run: {error}")
        return warnings

    async def prm(self) -> None:
        """Accept drafts by the reward model's score alone, at the published level."""
        if self.scorer_type in (None, "llm_judge", "token_probability"):
            raise Missing("it needs a process reward model as the scorer")
        await self._run(f"prm-{PRM_LEVEL:g}", "prm", {"type": "threshold", "t": PRM_LEVEL})

    async def rated_by_judge(self) -> None:
        """Accept drafts by a judge's digit, at the published level."""
        if self.judge_name is None:
            raise Missing("it needs a judge: --judge large, or {type: llm_judge, model: {...}}")
        policy = {"type": "threshold", "t": JUDGE_LEVEL}
        arm = Arm("judge-7of9", "baseline", "judge", policy)
        settings = ArmSettings(**{**arm.settings, "policy": {**policy, "scorer": self.judge_name}})
        await self.harness.run(arm.name, settings, policy, judged=True)

    async def cascade(self) -> None:
        """Let the large model answer where the small one's whole answer is improbable."""
        self._composed("cascade", {"type": "answer_cascade"}, unsureness, both=True)

    async def router(self) -> None:
        """Let a classifier give whole questions to one model."""
        validation = self._validated()
        small, large = await validation.run("small"), await validation.run("large")
        router = train_query_router(read_examples([small, large]), seed=self.seed).policy
        file = self.harness.folder / "router.json"
        save_policy(router, file, dataset=validation.dataset.identity(), questions=validation.n)
        policy = {"type": "query_router", "file": file.name}
        self._composed("router", policy, lambda row: router.probability(row["question"]), both=False)

    async def kind(self) -> None:
        """Regenerate by the kind of step alone."""
        validation = self._validated()
        traces = await validation.run("small")
        kinds = fit_kinds(read_traces(traces), self.pattern)
        told = [one._asdict() for one in kinds]
        write_json(self.harness.folder / "kinds.json", {"pattern": self.pattern, "kinds": told})
        await self._grid("kind", lambda share: policy_of_kinds(kinds, self.pattern, share))

    async def entropy(self) -> None:
        """Let the entropy of a step's first token say who writes it."""
        entropies = await first_token_entropies(self.harness)
        await self._grid(
            "entropy", lambda share: {"type": "entropy_probe", "limit": _upper(entropies, share)}
        )

    async def _grid(self, family: str, policy: Callable[[float], dict[str, Any]]) -> None:
        """Run a family of policies at fixed shares."""
        for share in SHARES:
            await self._run(f"{family}-{share:g}", family, policy(share))

    async def _run(self, name: str, family: str, policy: dict[str, Any]) -> None:
        arm = Arm(name, "baseline", family, policy)
        await self.harness.run(arm.name, arm.settings, arm.policy)

    def _composed(
        self, family: str, policy: dict[str, Any], signal: Callable[[Row], float], *, both: bool
    ) -> None:
        """Put arms together of the models alone, at fixed shares of the large model's tokens."""
        harness, plan = self.harness, self.harness.plan
        signals, tokens = read_signals(pairs(self.harness.folder, plan.n, plan.samples), signal)
        for share in SHARES:
            limit = limit_for(signals, tokens, share * float(tokens.mean()))
            questions = round(float((signals > limit).mean()), DIGITS)
            settings = ArmSettings(
                kind="baseline", family=family, policy={**policy, "limit": limit, "questions": questions}
            )
            arm = f"{family}-{share:g}"
            harness.forget(arm)  # its limit may have been another on fewer questions
            harness.note(arm, settings)
            rows = pairs(self.harness.folder, plan.n, plan.samples)
            compose(self.harness.folder, arm, rows, signal, limit, both=both)
            harness.take(arm)

    def _validated(self) -> Validation:
        if self.validation is None:
            raise Missing("it is fitted on questions other than these: give --validation")
        return self.validation


def _upper(values: Sequence[float], part: float) -> float:
    """Return the limit above which this part of the values lies; below all of them for 1."""
    ordered = sorted(values)
    kept = round((1 - part) * len(ordered))
    return round(ordered[kept - 1], 9) if kept else 0.0
