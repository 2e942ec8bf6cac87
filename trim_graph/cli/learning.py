"""`trim-graph train aggregate` and `sequence`: policies by reinforcement learning, one for each lambda."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from trim_graph.config import TrimConfig
from trim_graph.errors import SettingsError
from trim_graph.evaluation import Question
from trim_graph.journal import Journal
from trim_graph.policies import save_policy

from .learning_request import SETS, Request, read_questions
from .models import chosen_config, load_parts
from .reporting import need
from .rollout_shards import Recording, record_shard

if TYPE_CHECKING:
    from trim_graph.training.ppo import Point, Score, Trained, Training
    from trim_graph.training.rollouts import Rollouts
    from trim_graph.training.step_model import StepModel

__all__ = ["Request", "load_parts", "run_training"]


def run_training(request: Request) -> None:
    """Train the policies that a request asks for, and write them and their curves.

    Raises:
        TrimError: The request cannot be fulfilled.
    """
    need("cli,train", "stable_baselines3", "gymnasium", "matplotlib", "safetensors")
    training = _check(request)
    config = chosen_config(request.config, {})
    questions = read_questions(request)
    from trim_graph.training.curves import write_curves

    model = None if request.simulator is None else _step_model(request.simulator)
    with ExitStack() as opened:
        if request.shard is not None:
            record_shard(request, config, questions, opened)
            return
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

    def tell(look: Point) -> None:
        print(
            f"{request.kind} {price:g} seed {seed}: {look.phase} {look.steps}: validation reward "
            f"{look.reward:.4f}, accuracy {look.accuracy:.3f}, large tokens {look.large_tokens:.1f}",
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
        tell=tell,
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
    recording = Recording(request, config, load_parts)
    sets = []
    for name, those in zip(SETS, questions, strict=True):
        journal = None
        if request.rollouts is not None:
            file = request.rollouts / f"{name}.jsonl"
            journal = opened.enter_context(Journal(file, recording.settings(name)))
        sets.append(recording.rollouts(those, journal))
    recording.explore(sets)
    return sets[0], sets[1]


def _step_model(source: Path) -> StepModel:
    from trim_graph.training.fitting import fit
    from trim_graph.training.step_model import StepModel
    from trim_graph.training.traces import read_traces

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
