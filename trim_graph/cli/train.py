"""`trim-graph train aggregate` and `sequence`: policies by reinforcement learning, one for each lambda."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.config import TrimConfig
from trim_graph.errors import SettingsError, counted
from trim_graph.evaluation import Question
from trim_graph.evaluation.arms import identity_of
from trim_graph.evaluation.datasets import Dataset
from trim_graph.evaluation.runner import Executor, Models
from trim_graph.policies import save_policy
from trim_graph.storage.journal import Journal
from trim_graph.training.settings import Training

from .common import chosen_config, load_parts, make_folder, open_executor
from .eval import read_dataset
from .options import QueryRouterOptions, TrainOptions, settings_of
from .terminal import need

if TYPE_CHECKING:
    from trim_graph.policies import Policy
    from trim_graph.training.ppo import EvalPoint, Score, Trained
    from trim_graph.training.rollouts import Rollouts
    from trim_graph.training.step_model import StepModel


def run_training(options: TrainOptions) -> None:
    """Trains policies, one for each price, and writes them and their learning curves.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
    """
    need("cli,train", "stable_baselines3", "gymnasium", "matplotlib", "safetensors")
    training = _check(options)
    config = chosen_config(options.config, {})
    questions = read_questions(options)
    from trim_graph.training.ppo import write_curves

    model = None if options.simulator is None else _step_model(options.simulator)
    with ExitStack() as opened:
        rollouts, validation = _rollouts(options, config, questions, opened)
        done: list[Trained] = []
        for price in options.prices:
            family = [
                _train(options, price, seed, rollouts, validation, model, training)
                for seed in range(options.seeds)
            ]
            _save(options, max(family, key=lambda one: one.validation.reward), config)
            done += family
            files = write_curves(done, options.out, f"{options.kind}-curves")
    print(f"learning curves: {', '.join(file.name for file in files)} in {options.out}")
    _warn_of_contradictions((rollouts, validation))


def _train(
    options: TrainOptions,
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
            f"{options.kind} {price:g} seed {seed}: {point.phase} {point.steps}: validation reward "
            f"{point.reward:.4f}, accuracy {point.accuracy:.3f}, large tokens {point.large_tokens:.1f}",
            file=sys.stderr,
            flush=True,
        )

    return train(
        options.kind,
        price,
        rollouts=rollouts,
        validation=validation,
        model=model,
        seed=seed,
        training=training,
        on_eval=report,
    )


def _save(options: TrainOptions, best: Trained, config: TrimConfig) -> None:
    file = options.out / f"{options.kind}-{best.price:g}.json"
    save_policy(
        best.policy,
        file,
        command=f"trim-graph train {options.kind}",
        dataset=options.dataset,
        validation_dataset=options.validation_dataset,
        questions=options.n,
        validation_questions=options.validation,
        simulator=None if options.simulator is None else options.simulator.name,
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
    options: TrainOptions,
    config: TrimConfig,
    questions: tuple[list[Question], list[Question]],
    opened: ExitStack,
) -> tuple[Rollouts, Rollouts]:
    """Records rollouts of the real models, or resumes those recorded before."""
    recording = _Recording(options, config)
    sets = []
    for name, those in zip(SETS, questions, strict=True):
        journal = None
        if options.rollouts is not None:
            file = options.rollouts / f"{name}.jsonl"
            journal = opened.enter_context(Journal(file, recording.settings(name)))
        sets.append(recording.rollouts(those, journal))
    recording.explore(sets)
    return sets[0], sets[1]


class _Recording:
    """Models and questions that rollouts are recorded with.

    Args:
        options: Names the questions.
        config: Names the models. A policy or a budget of it is not looked at: rollouts have neither.

    Raises:
        SettingsError: There is no scorer.
    """

    def __init__(self, options: TrainOptions, config: TrimConfig) -> None:
        if config.scorer is None:
            raise SettingsError("learned policies need scores: name a scorer in the configuration")
        self.options, self.config = options, config

    def settings(self, name: str) -> dict[str, Any]:
        """Returns models, settings and questions of a set of rollouts; its journal refuses any others."""
        identity, options = identity_of(self.config), self.options
        same = {part: identity[part] for part in ("small", "large", "scorer", "settings")}
        option, given = ("--dataset", options.dataset)
        if name == SETS[1]:
            option, given = "--validation-dataset", options.validation_dataset or options.dataset
        return {**same, "dataset": named_dataset(option, given).identity()}

    @cached_property
    def _builder(self) -> Callable[[Policy], Any]:
        from trim_graph.training.rollout_collection import graph_builder

        return graph_builder(self.config, load_parts(self.config, rated=True))

    def rollouts(self, questions: Sequence[Question], journal: Journal | None) -> Rollouts:
        """Returns the rollouts of some questions; a journal's are among them, and it keeps the further ones.

        Args:
            questions: Theirs.
            journal: Of rollouts.
        """
        from trim_graph.evaluation.traces import read_traces
        from trim_graph.training.rollouts import Rollouts

        steps, at_once = self.config.settings.max_steps, self.options.concurrency
        found = Rollouts(
            questions, lambda policy: self._builder(policy), max_steps=steps, concurrency=at_once
        )
        if journal is not None:
            found.add(read_traces(journal.path))
            found.on_trace = lambda trace: journal.append(dict(trace))
        return found

    def explore(self, sets: Sequence[Rollouts]) -> None:
        """Explores the trees of both sets, here or by workers on a cluster.

        Raises:
            SettingsError: The cluster cannot be reached.
        """
        ray, count = self.options.ray, self.options.ray_workers
        named = list(zip(SETS, sets, strict=True))
        if ray is None and count is None:
            for name, found in named:
                asyncio.run(found.explore(self.options.rounds, partial(_report, name, found)))
            return

        def load() -> Models:
            return Models(self.config, load_parts(self.config, rated=True))

        async def spread(executor: Executor) -> None:
            from trim_graph.training.rollout_collection import explore_with

            for name, found in named:
                _report(name, found, 1, await explore_with(executor, found, self.options.rounds))

        with open_executor(self.config, load, rated=True, ray=ray, count=count) as executor:
            asyncio.run(spread(executor))


def _report(name: str, found: Rollouts, _round: int, left: int) -> None:
    print(
        f"{name} questions: {counted(found.runs, 'run')}, {left} of {counted(len(found), 'question')} "
        "with unexplored branches",
        file=sys.stderr,
        flush=True,
    )


def _step_model(source: Path) -> StepModel:
    from trim_graph.evaluation.traces import read_traces
    from trim_graph.training.fitting import fit
    from trim_graph.training.step_model import StepModel

    return StepModel.load(source) if source.suffix == ".json" else fit(read_traces(source))


def _check(options: TrainOptions) -> Training:
    """Refuses before minutes of work what would fail after them."""
    if not options.prices or len(set(options.prices)) < len(options.prices):
        raise SettingsError("--lambda: give one or more, each once")
    for option, folder in (("--out", options.out), ("--rollouts", options.rollouts)):
        if folder is not None:
            make_folder(option, folder)
    return settings_of(options, Training)


def _warn_of_contradictions(sets: Sequence[Rollouts]) -> None:
    runs, odd = sum(len(one.traces) for one in sets), sum(one.contradictions for one in sets)
    if odd:
        print(
            f"in {runs} runs the models wrote {odd} times something else at the same place: they are not "
            "deterministic, and each place kept what was written last",
            file=sys.stderr,
        )


SETS = ("training", "validation")


def read_questions(options: TrainOptions) -> tuple[list[Question], list[Question]]:
    """Returns the training and the validation questions.

    Raises:
        SettingsError: There are too few, one is in both, or one has no right answer.
    """
    if options.validation_dataset is None:
        every = _first(options.n + options.validation, "--dataset", options.dataset)
        training, validation = every[: options.n], every[options.n :]
    else:
        training = _first(options.n, "--dataset", options.dataset)
        validation = _first(options.validation, "--validation-dataset", options.validation_dataset)
    known = {question.text for question in training}
    if both := [question.text for question in validation if question.text in known]:
        raise SettingsError(f"a validation question is a training question too: {both[0][:80]}")
    return training, validation


def named_dataset(option: str, named: str) -> Dataset:
    """Reads an option that names a dataset."""
    # Another seed than that of calibrate: what is trained here may be calibrated there.
    return read_dataset(option, named, "validation", 1)


def _first(wanted: int, option: str, named: str) -> list[Question]:
    questions = list(islice(named_dataset(option, named).questions(), wanted))
    if len(questions) < wanted:
        raise SettingsError(
            f"{option} {named} has {counted(len(questions), 'question')}; {wanted} are needed"
        )
    if any(question.grade is None for question in questions):
        raise SettingsError(f"{option} {named} has questions without a right answer")
    return questions


def run_query_router(options: QueryRouterOptions) -> None:
    """Trains a router of whole questions, and writes a policy file for each share.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
    """
    need("train", "sklearn")
    from trim_graph.evaluation.query_router import read_examples, train_query_router

    out = options.out
    if out.suffix != ".json" or not out.absolute().parent.is_dir():
        raise SettingsError(f"--out {out}: name a .json file in a folder that exists")
    trained = train_query_router(
        read_examples(options.traces), validation=options.validation, seed=options.seed
    )
    print(
        f"trained on {counted(trained.trained_on, 'question')}; {trained.base_rate:.3f} of all benefit "
        "from the "
        f"large model; AUC {trained.auc:.3f} on {trained.validated_on} others"
    )
    for share in options.share:
        found, file = trained.at_share(share), out
        if len(options.share) > 1:
            file = out.with_stem(f"{out.stem}-{share:g}")
        save_policy(found.policy, file, share=found.share, traces=[path.name for path in options.traces])
        print(f"{file}: limit {found.policy.limit:.4f} gives {found.share:.3f} of those to the large model")
