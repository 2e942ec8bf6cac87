"""`trim-graph train aggregate` and `sequence`: policies by reinforcement learning, one for each lambda."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trim_graph.config import TrimConfig
from trim_graph.errors import SettingsError
from trim_graph.evaluation import Question
from trim_graph.evaluation.arms import identity_of
from trim_graph.evaluation.datasets import Dataset, make_dataset
from trim_graph.evaluation.executor import Executor, Models
from trim_graph.policies import save_policy
from trim_graph.storage.journal import Journal

from .common import chosen_config, load_parts, open_executor, parsed_option
from .terminal import need

if TYPE_CHECKING:
    from trim_graph.policies import Policy
    from trim_graph.training.ppo import EvalPoint, Score, Trained, Training
    from trim_graph.training.rollouts import Rollouts
    from trim_graph.training.step_model import StepModel


def run_training(request: Request) -> None:
    """Train the policies that a request asks for, and write them and their curves.

    Raises:
        TrimError: The request cannot be fulfilled.
    """
    need("cli,train", "stable_baselines3", "gymnasium", "matplotlib", "safetensors")
    training = _check(request)
    config = chosen_config(request.config, {})
    questions = read_questions(request)
    from trim_graph.training.ppo import write_curves

    model = None if request.simulator is None else _step_model(request.simulator)
    with ExitStack() as opened:
        rollouts, validation = _rollouts(request, config, questions, opened)
        done: list[Trained] = []
        for price in request.prices:
            family = [
                _train(request, price, seed, rollouts, validation, model, training)
                for seed in range(request.seeds)
            ]
            _save(request, max(family, key=lambda one: one.validation.reward), config)
            done += family
            files = write_curves(done, request.out, f"{request.kind}-curves")
    print(f"learning curves: {', '.join(file.name for file in files)} in {request.out}")
    _warn_of_contradictions((rollouts, validation))


def _train(
    request: Request,
    price: float,
    seed: int,
    rollouts: Rollouts,
    validation: Rollouts,
    model: StepModel | None,
    training: Training,
) -> Trained:
    from trim_graph.training.ppo import train

    def report(point: EvalPoint) -> None:
        print(
            f"{request.kind} {price:g} seed {seed}: {point.phase} {point.steps}: validation reward "
            f"{point.reward:.4f}, accuracy {point.accuracy:.3f}, large tokens {point.large_tokens:.1f}",
            file=sys.stderr,
            flush=True,
        )

    return train(
        request.kind,
        price,
        rollouts=rollouts,
        validation=validation,
        model=model,
        seed=seed,
        training=training,
        on_eval=report,
    )


def _save(request: Request, best: Trained, config: TrimConfig) -> None:
    file = request.out / f"{request.kind}-{best.price:g}.json"
    save_policy(
        best.policy,
        file,
        command=f"trim-graph train {request.kind}",
        dataset=request.dataset,
        validation_dataset=request.validation_dataset,
        questions=request.n,
        validation_questions=request.validation,
        simulator=None if request.simulator is None else request.simulator.name,
        models={"small": config.small.type, "large": config.large.type},
        validation=_rounded(best.validation),
    )
    print(
        f"{file}: lambda {best.price:g}, seed {best.seed}; on the validation questions reward "
        f"{best.validation.reward:.4f}, accuracy {best.validation.accuracy:.3f}, "
        f"{best.validation.large_tokens:.2f} large tokens a question"
    )


def _rounded(found: Score) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found._asdict().items()}


def _rollouts(
    request: Request, config: TrimConfig, questions: tuple[list[Question], list[Question]], opened: ExitStack
) -> tuple[Rollouts, Rollouts]:
    """Record rollouts of the real models, or go on with those recorded before."""
    recording = _Recording(request, config)
    sets = []
    for name, those in zip(SETS, questions, strict=True):
        journal = None
        if request.rollouts is not None:
            file = request.rollouts / f"{name}.jsonl"
            journal = opened.enter_context(Journal(file, recording.settings(name)))
        sets.append(recording.rollouts(those, journal))
    recording.explore(sets)
    return sets[0], sets[1]


class _Recording:
    """What the rollouts of a request are recorded with.

    Args:
        request: Names the questions.
        config: Names the models. A policy or a budget of it is not looked at: rollouts have neither.

    Raises:
        SettingsError: There is no scorer.
    """

    def __init__(self, request: Request, config: TrimConfig) -> None:
        if config.scorer is None:
            raise SettingsError("learned policies need scores: name a scorer in the configuration")
        self.request, self.config = request, config

    def settings(self, name: str) -> dict[str, Any]:
        """Return what the rollouts of a set are made with; those of other models or questions are refused."""
        identity, request = identity_of(self.config), self.request
        same = {part: identity[part] for part in ("small", "large", "scorer", "settings")}
        option, given = ("--dataset", request.dataset)
        if name == SETS[1]:
            option, given = "--validation-dataset", request.validation_dataset or request.dataset
        return {**same, "dataset": named_dataset(option, given).identity()}

    @cached_property
    def _builder(self) -> Callable[[Policy], Any]:
        from trim_graph.training.rollout_collection import graph_builder

        return graph_builder(self.config, load_parts(self.config, rated=True))

    def rollouts(self, questions: Sequence[Question], journal: Journal | None) -> Rollouts:
        """Return the rollouts of some questions, with those that a journal has, which keeps the further ones.

        Args:
            questions: Theirs.
            journal: Of rollouts.
        """
        from trim_graph.evaluation.traces import read_traces
        from trim_graph.training.rollouts import Rollouts

        steps, at_once = self.config.settings.max_steps, self.request.concurrency
        found = Rollouts(
            questions, lambda policy: self._builder(policy), max_steps=steps, concurrency=at_once
        )
        if journal is not None:
            found.add(read_traces(journal.path))
            found.on_trace = lambda trace: journal.append(dict(trace))
        return found

    def explore(self, sets: Sequence[Rollouts]) -> None:
        """Explore the trees of both sets, here or by workers on a cluster.

        Raises:
            SettingsError: The cluster cannot be reached.
        """
        ray, count = self.request.ray, self.request.ray_workers
        named = list(zip(SETS, sets, strict=True))
        if ray is None and count is None:
            for name, found in named:
                asyncio.run(found.explore(self.request.rounds, partial(_report, name, found)))
            return

        def load() -> Models:
            return Models(self.config, load_parts(self.config, rated=True))

        async def spread(executor: Executor) -> None:
            from trim_graph.training.rollout_collection import explore_with

            for name, found in named:
                _report(name, found, 1, await explore_with(executor, found, self.request.rounds))

        with open_executor(self.config, load, rated=True, ray=ray, count=count) as executor:
            asyncio.run(spread(executor))


def _report(name: str, found: Rollouts, _round: int, left: int) -> None:
    print(
        f"{name} questions: {found.runs} runs, {left} of {len(found)} questions with unexplored branches",
        file=sys.stderr,
        flush=True,
    )


def _step_model(source: Path) -> StepModel:
    from trim_graph.evaluation.traces import read_traces
    from trim_graph.training.fitting import fit
    from trim_graph.training.step_model import StepModel

    return StepModel.load(source) if source.suffix == ".json" else fit(read_traces(source))


def _check(request: Request) -> Training:
    """Refuse before minutes of work what would fail after them."""
    from trim_graph.training.ppo import Training

    for option, value in (
        ("-n", request.n),
        ("--validation", request.validation),
        ("--seeds", request.seeds),
        ("--concurrency", request.concurrency),
    ):
        if value < 1:
            raise SettingsError(f"{option} is {value}: choose 1 or more")
    for price in request.prices:
        if not 0 <= price <= 1:
            raise SettingsError(f"--lambda is {price}: choose a cost in right answers, such as 0.01")
    if not request.prices or len(set(request.prices)) < len(request.prices):
        raise SettingsError("--lambda: give one or more, each once")
    for option, folder in (("--out", request.out), ("--rollouts", request.rollouts)):
        if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise SettingsError(f"{option} {folder}: name a folder that exists and can be written")
    return Training(
        steps=request.steps,
        simulated_steps=request.simulated_steps,
        patience=request.patience,
        window=request.window,
    )


def _warn_of_contradictions(sets: Sequence[Rollouts]) -> None:
    runs, odd = sum(len(one.traces) for one in sets), sum(one.contradictions for one in sets)
    if odd:
        print(
            f"in {runs} runs the models wrote {odd} times something else at the same place: they are not "
            "deterministic, and each place kept what was written last",
            file=sys.stderr,
        )


SETS = ("training", "validation")


@dataclass(frozen=True, slots=True)
class Request:
    """The command line, as given."""

    kind: Literal["aggregate", "sequence"]
    out: Path
    prices: tuple[float, ...]
    dataset: str
    validation_dataset: str | None = None
    config: Path | None = None
    n: int = 1000
    validation: int = 300
    simulator: Path | None = None
    seeds: int = 1
    steps: int = 200_000
    simulated_steps: int = 100_000
    patience: int = 10
    window: int = 16
    rollouts: Path | None = None
    rounds: int = 64
    concurrency: int = 128
    ray: str | None = None
    ray_workers: int | None = None


def read_questions(request: Request) -> tuple[list[Question], list[Question]]:
    """Return the training and the validation questions.

    Raises:
        SettingsError: There are too few, one is in both, or one has no right answer.
    """
    if request.validation_dataset is None:
        every = _first(request.n + request.validation, "--dataset", request.dataset)
        training, validation = every[: request.n], every[request.n :]
    else:
        training = _first(request.n, "--dataset", request.dataset)
        validation = _first(request.validation, "--validation-dataset", request.validation_dataset)
    known = {question.text for question in training}
    if both := [question.text for question in validation if question.text in known]:
        raise SettingsError(f"a validation question is a training question too: {both[0][:80]}")
    return training, validation


def named_dataset(option: str, named: str) -> Dataset:
    """Read an option that names a dataset."""
    given = parsed_option(option, named, "{type: file, path: questions.jsonl}")
    # Another seed than that of calibrate: what is trained here may be calibrated there.
    return make_dataset(given, part="validation", seed=1)


def _first(wanted: int, option: str, named: str) -> list[Question]:
    questions = list(islice(named_dataset(option, named).questions(), wanted))
    if len(questions) < wanted:
        raise SettingsError(f"{option} {named} has {len(questions)} questions; {wanted} are needed")
    if any(question.grade is None for question in questions):
        raise SettingsError(f"{option} {named} has questions without a right answer")
    return questions
