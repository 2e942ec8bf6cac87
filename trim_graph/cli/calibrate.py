"""`trim-graph calibrate`: the operating point of a family of policies for a spend or a PGR."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring
from trim_graph.config.load import check_place, write_config
from trim_graph.errors import SettingsError
from trim_graph.evaluation.arms import ParameterSweep, PolicyList, identity_of, make_family, policy_config
from trim_graph.evaluation.calibration import (
    CachedScorer,
    Calibrator,
    Forecast,
    Point,
    RecordFile,
    Target,
    forecast,
)
from trim_graph.evaluation.datasets import Dataset, first_questions, make_dataset
from trim_graph.evaluation.records import Metric

from .common import Progress, chosen_config, load_parts, parsed_option
from .options import CalibrateOptions
from .terminal import Interrupted, need

DEFAULT_N = 500
"""Questions of a dataset without end, where -n does not say."""
FAR = 0.1
"""A spend that is off by more than this, relative to the target, is remarked on."""


def run_calibrate(options: CalibrateOptions) -> None:
    """Calibrates, says what to expect, and writes the configuration.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
        Interrupted: Ctrl-C.
    """
    need("cli", "numpy")
    target = _target(options)
    config = chosen_config(options.config, {"settings": {"seed": options.seed}})
    out = _place(options)
    family = make_family(options.family, config.policy.model_dump())
    if target.kind == "max_cost" and not any(price.input or price.output for _, price in config.prices):
        raise SettingsError(
            "--max-cost needs prices: put `prices: {large: {input: 0.5, output: 1.5}}` and the "
            "like into the file of --config"
        )
    dataset = _dataset(options)
    questions = list(first_questions(dataset, options.n, default=DEFAULT_N))
    if not questions:
        raise SettingsError(f"--dataset {options.dataset}: there are no questions in it")
    if options.n is not None and options.n > len(questions):
        raise SettingsError(
            f"--dataset {options.dataset} has {len(questions)} questions; {options.n} are wanted"
        )
    work = _Calibration(options, config, dataset, load_parts(config, rated=_rated(family)))
    calibrator = work.calibrator(questions)
    try:
        point = asyncio.run(calibrator.find(family, target))
    except KeyboardInterrupt as error:
        kept = (
            f"; what was measured is in {options.keep}: the same command resumes it" if options.keep else ""
        )
        raise Interrupted(f"interrupted{kept}") from error
    finally:
        work.close()
    policy = family.policy(point.setting)
    expected = asyncio.run(_forecast(calibrator, policy, options.seed))
    write_config(options.config, out, policy)
    if options.json_file:
        _write_report(options, target, policy, expected, calibrator, dataset)
    _show(point, target, policy, expected, dataset, out)


def _target(options: CalibrateOptions) -> Target:
    given = {"large_share": options.large_share, "max_cost": options.max_cost, "pgr": options.pgr}
    chosen = [(kind, value) for kind, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise SettingsError("give one of --large-share, --max-cost and --pgr")
    kind, value = chosen[0]
    try:
        return Target(kind, value)  # type: ignore[arg-type]
    except SettingsError as error:
        raise SettingsError(f"--{kind.replace('_', '-')}: {error}") from error


def _place(options: CalibrateOptions) -> Path:
    out = options.out
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
    parsed = parsed_option("--dataset", given, "{type: file, path: questions.jsonl}")
    return make_dataset(parsed, part="validation", seed=options.seed)


def _rated(family: ParameterSweep | PolicyList) -> bool:
    settings = family.policies if isinstance(family, PolicyList) else [0.5]
    return any(policy_config(family.policy(setting)).build().needs_score for setting in settings)


class _Calibration:
    """A `Calibrator` with the models of a configuration, a folder and progress."""

    def __init__(self, options: CalibrateOptions, config: TrimConfig, dataset: Dataset, parts: Parts) -> None:
        self.options, self.config, self.dataset = options, config, dataset
        self.scorer = None if parts.scorer is None else CachedScorer(parts.scorer)
        self.parts = Parts(_remembering(parts.small), _remembering(parts.large), self.scorer)
        self.identity = {
            **identity_of(config),
            "prices": config.prices.model_dump(),
            "dataset": dataset.identity(),
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
        self.bar = self._opened.enter_context(Progress(json.dumps(policy), self.n, done=done))

    def _print_point(self, point: Point) -> None:
        self._opened.close()
        metrics = {
            "share": point.share,
            "cost": point.cost or None,
            "accuracy": point.accuracy,
            "pgr": point.pgr,
        }
        line = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
        print(f"{point.setting}: {line}", file=sys.stderr, flush=True)


def _remembering(model: Any) -> Any:
    """Lets a greedy model remember its answers: the policies of a family mostly ask it the same."""
    from langchain_core.caches import InMemoryCache

    if getattr(model, "temperature", None) == 0 and getattr(model, "cache", False) is None:
        model.cache = InMemoryCache()
    return model


async def _forecast(calibrator: Calibrator, policy: dict[str, Any], seed: int) -> Forecast:
    outcomes = await calibrator.outcomes(policy)
    return forecast(outcomes, small=calibrator.small, large=calibrator.large, seed=seed)


def _show(
    point: Point, target: Target, policy: dict[str, Any], expected: Forecast, dataset: Dataset, out: Path
) -> None:
    part = f", {dataset.part_name}" if dataset.part_name else ""
    print(f"policy: {json.dumps(policy)}")
    print(f"To expect, measured on {expected['n']} questions of {dataset.name}{part} (95 % intervals):")
    names = {
        "share": "share of large tokens",
        "large_tokens": "large tokens a question",
        "cost": "cost a question",
        "accuracy": "accuracy",
        "pgr": "gap recovered (PGR)",
    }
    for key, name in names.items():
        figure: Metric = expected[key]  # type: ignore[literal-required]
        if figure["value"] is not None and (key != "cost" or figure["value"]):
            spread = figure["interval"]
            between = f" ({spread.low:.4g} to {spread.high:.4g})" if spread else ""
            print(f"  {name:<24} {figure['value']:.4g}{between}")
    value = point.value(target) or 0.0
    off = target.value - value if target.kind == "pgr" else abs(value - target.value) - FAR * target.value
    if off > 0:
        wanted = f"{target.kind.replace('_', ' ')} of {target.value:g}"
        print(f"No policy of this family comes closer to the {wanted}.")
    print(f"written to {out}")


def _write_report(
    options: CalibrateOptions,
    target: Target,
    policy: dict[str, Any],
    expected: Forecast,
    calibrator: Calibrator,
    dataset: Dataset,
) -> None:
    report = {
        "what": "trim-graph calibrate",
        "target": asdict(target),
        "policy": policy,
        "expected": expected,
        "dataset": dataset.identity(),
        "seed": options.seed,
        "points": [asdict(point) for point in calibrator.points.values()],
    }
    assert options.json_file is not None
    options.json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
