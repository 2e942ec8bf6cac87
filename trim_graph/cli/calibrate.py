"""`trim-graph calibrate`: the operating point of a family of policies for a spend, a loss or a PGR."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring
from trim_graph.config.load import check_place, write_config
from trim_graph.config.quality import Measured, QualityPoint
from trim_graph.errors import InputError, SettingsError, counted
from trim_graph.evaluation.arms import (
    ParameterSweep,
    PolicyList,
    arm_name,
    identity_of,
    make_family,
    policy_config,
    price_identity,
)
from trim_graph.evaluation.calibration import (
    CachedScorer,
    Calibrator,
    Forecast,
    MeasuredPoint,
    RecordFile,
    Selection,
    Target,
    forecast,
)
from trim_graph.evaluation.datasets import Dataset, first_questions, grader_of, read_through, title_of
from trim_graph.evaluation.metrics import LEAST
from trim_graph.evaluation.noninferiority import POWER, PairedOutcomes, least_questions
from trim_graph.evaluation.records import Metric

from .common import Progress, calls_scorer, chosen_config, load_parts
from .eval import read_dataset, repeats_warning
from .options import CalibrateOptions
from .terminal import UNDECIDED, Interrupted, need

DEFAULT_N = 500
"""Questions of a dataset without end, where -n does not say."""
FAR = 0.1
"""A spend that is off by more than this, relative to the target, is remarked on."""
TARGETS = ("large_share", "max_cost", "pgr", "max_loss", "save")
Family = ParameterSweep | PolicyList


@dataclass(frozen=True, slots=True)
class _Task:
    """One operating point to be chosen.

    Attributes:
        name: Under ``quality``; None: the policy of the configuration.
        target: The target.
        family: What is chosen from.
    """

    name: str | None
    target: Target
    family: Family


@dataclass(frozen=True, slots=True)
class _Answer:
    """Answer to a task.

    Attributes:
        task: The task.
        selection: The point, or what is missing.
        policy: As a configuration names it; None: undecided.
        expected: Of the policy.
    """

    task: _Task
    selection: Selection
    policy: dict[str, Any] | None
    expected: Forecast | None


def run_calibrate(options: CalibrateOptions) -> int:
    """Calibrates, says what to expect, and writes the configuration.

    Returns:
        The exit code: 0, or `UNDECIDED` where something wanted is.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
        Interrupted: Ctrl-C.
    """
    need("cli,eval", "numpy", "scipy")
    target = _target(options)
    config = chosen_config(options.config, {"settings": {"seed": options.seed}})
    out = _place(options)
    tasks = _tasks(options, config, target)
    kinds = {task.target.kind for task in tasks}
    rated = any(_rated(task.family) for task in tasks)
    unpriced = _unpriced(config, rated=rated)
    if "max_cost" in kinds and unpriced:
        raise SettingsError(
            f"--max-cost needs prices, and there is none of {', '.join(unpriced)}: put `prices: {{large: "
            "{input: 0.5, output: 1.5}}` and the like into the file of --config, 0 for what is free"
        )
    dataset = _dataset(options)
    questions = list(first_questions(dataset, options.n, default=DEFAULT_N))
    if not questions:
        raise SettingsError(f"--dataset {options.dataset}: there are no questions in it")
    if options.n is not None and options.n > len(questions):
        raise SettingsError(
            f"--dataset {options.dataset} has {counted(len(questions), 'question')}; {options.n} are wanted"
        )
    if repeats := read_through(dataset, len(questions)):
        print(repeats_warning(len(questions), repeats), file=sys.stderr)
        questions = [one for index, one in enumerate(questions) if index not in repeats]
    if len(questions) < LEAST:
        few = counted(len(questions), "question is", "questions are")
        raise InputError(f"{few} too few to choose an operating point on: give {LEAST} or more")
    _warn_of_few(tasks, len(questions))
    if rated and config.scorer is None:
        raise SettingsError("the policies to choose from need scores, and the configuration names no scorer")
    # The policy of the configuration, which may have none yet, is not run.
    config = config.model_copy(update={"policy": policy_config({"type": "small_only"})})
    work = _Calibration(options, config, dataset, load_parts(config, rated=rated), priced=not unpriced)
    calibrator = work.calibrator(questions)
    try:
        answers = asyncio.run(_answer(calibrator, tasks, options.seed, priced=not unpriced))
    except KeyboardInterrupt as error:
        kept = (
            f"; what was measured is in {options.keep}: the same command resumes it" if options.keep else ""
        )
        raise Interrupted(f"interrupted{kept}") from error
    finally:
        work.close()
    changes: dict[tuple[str, ...], dict[str, Any]] = dict(
        _change(answer) for answer in answers if answer.policy is not None
    )
    alone = _large_alone(calibrator, config)
    if changes:
        old = config.large_alone.model_dump(exclude_none=True)
        write_config(options.config, out, changes | ({("large_alone",): {**old, **alone}} if alone else {}))
    if options.json_file:
        _write_report(options, answers, calibrator, dataset, alone, priced=not unpriced)
    for answer in answers:
        _show(answer, dataset)
    if calibrator.none_right:
        print("Neither model alone answered one question right: check the grader and the prompt.")
    if changes and alone:
        stated = ", ".join(f"{key}: {value:g}" for key, value in alone.items())
        print(f"large_alone: {{{stated}}}, as measured here: runs estimate their net savings with it")
    print(f"written to {out}" if changes else "nothing written")
    return UNDECIDED if len(changes) < len(answers) else 0


def _large_alone(calibrator: Calibrator, config: TrimConfig) -> dict[str, float]:
    """Returns what was measured of ``large_alone``; a cache of responses has no pace of its own."""
    measured = calibrator.large_alone(timed=config.response_cache is None)
    known = measured.model_dump(exclude_none=True)
    return {key: rounded for key, value in known.items() if (rounded := round(value, 5))}


def _target(options: CalibrateOptions) -> Target | None:
    """Returns the target of the command line; None: those of the configuration."""
    given = [(kind, value) for kind in TARGETS if (value := getattr(options, kind)) is not None]
    if not given and options.config is not None:
        return None
    if len(given) != 1:
        raise SettingsError("give one of --large-share, --max-cost, --pgr, --max-loss and --save")
    kind, value = given[0]
    try:
        return Target(cast(Any, kind), value)
    except SettingsError as error:
        raise SettingsError(f"--{kind.replace('_', '-')}{str(error).removeprefix(kind)}") from error


def _tasks(options: CalibrateOptions, config: TrimConfig, target: Target | None) -> list[_Task]:
    if target is not None:
        return [_Task(None, target, make_family(options.family, _own_policy(config)))]
    if not config.quality:
        raise SettingsError(
            "give one of --large-share, --max-cost, --pgr, --max-loss and --save, or operating points: "
            f"{options.config} has none, such as quality: {{high: {{max_loss: 0.02}}}}"
        )
    return [
        _Task(name, _target_of(point), make_family(options.family, _own_policy(config, point)))
        for name, point in config.quality.items()
    ]


def _target_of(point: QualityPoint) -> Target:
    if point.max_loss is not None:
        return Target("max_loss", point.max_loss)
    assert point.save is not None
    return Target("save", point.save)


def _own_policy(config: TrimConfig, point: QualityPoint | None = None) -> dict[str, Any]:
    """Returns the policy whose family is searched where --family does not say."""
    for policy in (point.policy if point else None, config.policy):
        if policy is not None and policy.type != "quality":
            return policy.model_dump()
    return {"type": "threshold"}


def _warn_of_few(tasks: Sequence[_Task], n: int) -> None:
    losses = [task.target.value for task in tasks if task.target.kind == "max_loss"]
    for loss in losses:
        if n < (least := least_questions(loss)):
            print(
                f"{counted(n, 'question shows', 'questions show')} a loss of at most {loss:g} only "
                "where a policy is right more often than "
                f"the large model: without any difference it takes {least}",
                file=sys.stderr,
            )


def _place(options: CalibrateOptions) -> Path:
    out = options.out
    if options.write:
        if options.config is None or out is not None:
            raise SettingsError("--write replaces the file of --config: give that file, and no --out")
        out = options.config
    if out is None:
        source = options.config or Path("trim.yaml")
        out = source.with_name(f"{source.stem}.calibrated.yaml")
    check_place(options.config, out)
    file = options.json_file
    if file is not None and not file.absolute().parent.is_dir():
        raise SettingsError(f"--json {file}: the folder {file.absolute().parent} does not exist")
    if options.keep is not None:
        try:
            options.keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"--keep {options.keep} cannot be made a folder: {error.strerror}") from error
    return out


def _dataset(options: CalibrateOptions) -> Dataset:
    given = options.dataset
    if given is None:
        if options.config is not None:
            raise SettingsError(
                "--dataset is missing: which questions are the models of --config to be tried on?"
            )
        given = "arithmetic:standard"
    return read_dataset("--dataset", given, "validation", options.seed)


def _rated(family: Family) -> bool:
    settings = family.policies if isinstance(family, PolicyList) else [0.5]
    return any(policy_config(family.policy(setting)).build().needs_score for setting in settings)


def _unpriced(config: TrimConfig, *, rated: bool) -> list[str]:
    """Names the models that will be used and have no price: what a question costs is then unknown."""
    used = ["small", "large", *(["scorer"] if rated and calls_scorer(config) else [])]
    if not config.prices.given:
        return used
    return [model for model in used if model not in config.prices.model_fields_set]


class _Calibration:
    """A `Calibrator` with the models of a configuration, a folder and progress."""

    def __init__(
        self, options: CalibrateOptions, config: TrimConfig, dataset: Dataset, parts: Parts, *, priced: bool
    ) -> None:
        self.options, self.config, self.dataset, self.priced = options, config, dataset, priced
        self.scorer = None if parts.scorer is None else CachedScorer(parts.scorer)
        self.parts = Parts(_with_cache(parts.small), _with_cache(parts.large), self.scorer)
        self.identity = {
            **identity_of(config),
            "prices": price_identity(config.prices),
            "dataset": dataset.identity(),
            **({"grader": grader} if (grader := grader_of(dataset)) else {}),
        }
        self.bar: Progress | None = None
        self._opened = ExitStack()

    def calibrator(self, questions: list[Any]) -> Calibrator:
        """Makes it."""
        folder = self.options.keep
        self.n = len(questions)
        return Calibrator(
            lambda policy: build_graph(for_measuring(self._with(policy)), parts=self.parts),
            questions,
            scores=self.scorer.draft_scores if self.scorer else list,
            concurrency=self.options.concurrency,
            store=None if folder is None else lambda policy: self._store(folder, policy),
            on_begin=self._begin,
            on_record=lambda record: self.bar.advance() if self.bar else None,
            on_point=self._print_point,
        )

    def close(self) -> None:
        """Ends the progress bar."""
        self._opened.close()

    def _with(self, policy: dict[str, Any]) -> TrimConfig:
        return self.config.model_copy(update={"policy": policy_config(policy)})

    def _store(self, folder: Path, policy: dict[str, Any]) -> RecordFile:
        chosen = identity_of(self._with(policy))["policy"]
        return RecordFile(folder, {**self.identity, "policy": chosen}, self.scorer)

    def _begin(self, policy: dict[str, Any], done: int) -> None:
        self._opened.close()
        self.bar = self._opened.enter_context(Progress(arm_name(policy), self.n, done=done))

    def _print_point(self, point: MeasuredPoint) -> None:
        self._opened.close()
        metrics = {
            "share": point.share,
            "cost": point.cost if self.priced else None,
            "accuracy": point.accuracy,
            "pgr": point.pgr,
        }
        line = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
        print(f"{point.setting}: {line}", file=sys.stderr, flush=True)


def _with_cache(model: Any) -> Any:
    """Caches the answers of a greedy model: the policies of a family mostly send it the same calls."""
    from langchain_core.caches import InMemoryCache

    if getattr(model, "temperature", None) == 0 and getattr(model, "cache", False) is None:
        model.cache = InMemoryCache()
    return model


async def _answer(
    calibrator: Calibrator, tasks: Sequence[_Task], seed: int, *, priced: bool
) -> list[_Answer]:
    answers = []
    for task in tasks:
        found = await calibrator.select(task.family, task.target)
        policy = expected = None
        if found.point is not None:
            policy = task.family.policy(found.point.setting)
            expected = forecast(
                await calibrator.outcomes(policy),
                small=calibrator.small,
                large=calibrator.large,
                seed=seed,
                confidence=found.confidence,
            )
            if not priced:
                expected["cost"] = Metric(value=None, interval=None)
        answers.append(_Answer(task, found, policy, expected))
    return answers


def _change(answer: _Answer) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the place of a policy in the configuration, and what is written there."""
    task, policy, expected = answer.task, answer.policy, answer.expected
    assert policy is not None
    assert expected is not None
    if task.name is None:
        return ("policy",), policy
    loss = expected["loss"]
    measured = Measured(
        n=expected["n"],
        saved=round(1 - (expected["share"]["value"] or 0.0), 4),
        loss=None if loss is None else round(loss["value"], 4),
        loss_bound=None if loss is None else round(loss["bound"], 4),
    )
    return ("quality", task.name), {
        task.target.kind: task.target.value,
        "policy": policy,
        "measured": measured.model_dump(exclude_none=True),
    }


def _show(answer: _Answer, dataset: Dataset) -> None:
    task, policy, expected = answer.task, answer.policy, answer.expected
    if task.name is not None:
        print(f"{task.name} ({task.target.kind} {task.target.value:g})")
    if policy is None or expected is None:
        print(f"Undecided: {_undecided(answer, dataset)}")
        return
    part = f", {dataset.part_name}" if dataset.part_name else ""
    print(f"policy: {json.dumps(policy)}")
    print(
        f"To expect, measured on {counted(expected['n'], 'question')} of {title_of(dataset)}{part} "
        "(95 % intervals):"
    )
    names = {
        "share": "share of large tokens",
        "large_tokens": "large tokens a question",
        "cost": "cost a question",
        "accuracy": "accuracy",
        "pgr": "gap recovered (PGR)",
    }
    for key, name in names.items():
        figure: Metric = expected[key]  # type: ignore[literal-required]
        if figure["value"] is not None:
            spread = figure["interval"]
            between = f" ({spread.low:.4g} to {spread.high:.4g})" if spread else ""
            print(f"  {name:<24} {figure['value']:.4g}{between}")
    if (loss := expected["loss"]) is not None:
        print(
            f"  {'loss of accuracy':<24} {loss['value']:.4g} (at most {loss['bound']:.4g}; "
            f"{loss['lost']} lost, {loss['gained']} gained against the large model alone)"
        )
    _show_miss(answer, dataset)


def _show_miss(answer: _Answer, dataset: Dataset) -> None:
    """Says where the target is missed, or what is not decided about a cheaper policy."""
    target, point, undecided = answer.task.target, answer.selection.point, answer.selection.undecided
    assert point is not None
    value = point.value(target) or 0.0
    if target.kind == "max_loss":
        if undecided is not None:
            print(f"The next that would spend less {_differs(undecided)}. {_further(answer, dataset)}")
        return
    if target.kind in ("pgr", "save"):
        off = target.level - value if target.kind == "pgr" else value - target.level
    else:
        off = abs(value - target.value) - FAR * target.value
    if off > 0:
        wanted = f"{target.kind.replace('_', ' ')} of {target.value:g}"
        print(f"No policy of this family comes closer to the {wanted}.")


def _undecided(answer: _Answer, dataset: Dataset) -> str:
    target, seen = answer.task.target, answer.selection.undecided
    if seen is None:
        return "no policy of this family saves any tokens of the large model."
    if target.kind == "pgr":
        return (
            "the large model is not shown to be better than the small one, which of "
            f"{counted(seen.n, 'question')} lost "
            f"{seen.gained} and gained {seen.lost} against it. {_further(answer, dataset)}"
        )
    bound = seen.loss_bound(answer.selection.confidence)
    return (
        f"a loss of at most {target.value:g} is not shown. The policy nearest to it{_named(answer)} "
        f"{_differs(seen)}: its loss is at most {bound:.3g}, with 95 % confidence. "
        f"{_further(answer, dataset)}"
    )


def _named(answer: _Answer) -> str:
    """Names the policy that a loss is not shown of, with its spend: at 100 % it is the large model itself."""
    nearest = answer.selection.nearest
    if nearest is None:
        return ""
    name = arm_name(answer.task.family.policy(nearest.setting))
    share = "" if nearest.share is None else f" ({100 * nearest.share:.3g} % of the large model's own tokens)"
    return f", {name}{share},"


def _differs(seen: PairedOutcomes) -> str:
    of = counted(seen.n, "question")
    return f"lost {seen.lost} of {of} and gained {seen.gained} against the large model alone"


def _further(answer: _Answer, dataset: Dataset) -> str:
    further, seen = answer.selection.further, answer.selection.undecided
    assert seen is not None
    if further is None:
        return "At this rate more questions will not show it."
    wanted, there = seen.n + further, dataset.count()
    lacking = "" if there is None or there >= wanted else f"; {title_of(dataset)} has {there}"
    return (
        f"Ask {counted(further, 'more question')} (-n {wanted}{lacking}): a decision then has a "
        f"chance of {100 * POWER:g} %, "
        "if questions are lost and gained as here, half a question added to either count."
    )


def _write_report(
    options: CalibrateOptions,
    answers: Sequence[_Answer],
    calibrator: Calibrator,
    dataset: Dataset,
    large_alone: dict[str, float],
    *,
    priced: bool,
) -> None:
    unknown = {} if priced else {"cost": None}
    found = [
        {
            "name": answer.task.name,
            "target": asdict(answer.task.target),
            "policy": answer.policy,
            "expected": answer.expected,
            "undecided": answer.selection.undecided and asdict(answer.selection.undecided),
            "further_questions": answer.selection.further,
        }
        for answer in answers
    ]
    report = {
        "what": "trim-graph calibrate",
        **(found[0] if found[0]["name"] is None else {"quality": found}),
        "dataset": dataset.identity(),
        "seed": options.seed,
        "large_alone": large_alone,
        "points": [asdict(point) | unknown for point in calibrator.points.values()],
    }
    assert options.json_file is not None
    options.json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
