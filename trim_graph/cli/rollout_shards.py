"""Rollouts of the models for training: recorded here, by shards, or by workers on a Ray cluster."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.config import Parts, TrimConfig
from trim_graph.distributed.merging import Join, join_all
from trim_graph.distributed.shards import Shard, ShardFolder, open_shard
from trim_graph.distributed.workers import Models, Workers
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation import Question
from trim_graph.evaluation.identity import code_identity, identity_of
from trim_graph.journal import Journal

from .learning_request import SETS, Request, named_dataset, read_questions
from .models import chosen_config
from .reporting import need
from .working import open_workers

if TYPE_CHECKING:
    from trim_graph.policies import Policy
    from trim_graph.training.rollouts import Rollouts
    from trim_graph.training.traces import Trace


class Recording:
    """What the rollouts of a request are recorded with.

    Args:
        request: Names the questions.
        config: Names the models. A policy or a budget of it is not looked at: rollouts have neither.
        load: Loads the models, when one is asked here.

    Raises:
        SettingsError: There is no scorer.
    """

    def __init__(self, request: Request, config: TrimConfig, load: Callable[..., Parts]) -> None:
        if config.scorer is None:
            raise SettingsError("learned policies need scores: name a scorer in the configuration")
        self.request, self.config, self.load = request, config, load

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
        from trim_graph.training.recording import graph_builder

        return graph_builder(self.config, self.load(self.config, rated=True))

    def rollouts(
        self, questions: Sequence[Question], journal: Journal | None, places: Sequence[int] | None = None
    ) -> Rollouts:
        """Return the rollouts of some questions, with those that a journal has, which keeps the further ones.

        Args:
            questions: Theirs.
            journal: Of rollouts.
            places: Of the questions in their set, for the record; default: one after the other.
        """
        from trim_graph.training.rollouts import Rollouts
        from trim_graph.training.traces import read_traces

        steps, at_once = self.config.settings.max_steps, self.request.concurrency
        found = Rollouts(
            questions, lambda policy: self._builder(policy), max_steps=steps, concurrency=at_once
        )
        if journal is not None:
            found.add(read_traces(journal.path))

            def keep(trace: Trace) -> None:
                index = trace["index"]
                journal.append({**trace, "index": index if places is None else places[index]})

            found.on_trace = keep
        return found

    def explore(self, sets: Sequence[Rollouts]) -> None:
        """Run each question of both sets until all its ways are known: here, or by workers on a cluster.

        Raises:
            SettingsError: The cluster cannot be reached.
        """
        ray, count = self.request.ray, self.request.ray_workers
        named = list(zip(SETS, sets, strict=True))
        if ray is None and count is None:
            for name, found in named:
                asyncio.run(found.explore(self.request.rounds, partial(_tell, name, found)))
            return

        def load() -> Models:
            return Models(self.config, self.load(self.config, rated=True))

        async def spread(workers: Workers) -> None:
            from trim_graph.training.recording import explore_with

            for name, found in named:
                _tell(name, found, 1, await explore_with(workers, found, self.request.rounds))

        with open_workers(self.config, load, rated=True, ray=ray, count=count) as workers:
            asyncio.run(spread(workers))


def _tell(name: str, found: Rollouts, turn: int, left: int) -> None:
    print(
        f"{name} questions: {found.runs} runs, {left} of {len(found)} questions with unknown ways",
        file=sys.stderr,
        flush=True,
    )


def record_shard(
    request: Request, config: TrimConfig, questions: tuple[list[Question], list[Question]], opened: ExitStack
) -> None:
    """Record a shard of the rollouts, and train nothing.

    Raises:
        SettingsError: There is no --rollouts to keep them in.
    """
    from .learning import load_parts

    shard = Shard.parse(str(request.shard))
    if request.rollouts is None:
        raise SettingsError("--shard records rollouts: name the folder that keeps them with --rollouts")
    recording = Recording(request, config, load_parts)
    told = {"command": "train", "code": code_identity(), "request": request.told()}
    folder = open_shard(request.rollouts, shard, {**told, "folder": os.getcwd()})
    sets = []
    for name, those in zip(SETS, questions, strict=True):
        places = [index for index in range(len(those)) if shard.takes(index)]
        file = folder.journal(f"{name}.jsonl")
        journal = opened.enter_context(Journal(file, recording.settings(name)))
        sets.append(recording.rollouts([those[index] for index in places], journal, places))
    recording.explore(sets)
    print(f"shard {shard} has ended, in {folder.path}. When all have: trim-graph merge {request.rollouts}")


def merge_rollouts(out: Path, shards: Sequence[ShardFolder]) -> None:
    """Join the shards of rollouts.

    Args:
        out: The folder that keeps them.
        shards: Of it.

    Raises:
        TrimError: Questions are missing or not explored, or shards do not belong together.
    """
    need("cli,train", "stable_baselines3")
    request = Request.of(shards[0].told["request"], out)
    recording = Recording(
        request, chosen_config(request.config, {}), lambda *_, **__: Parts(None, None, None)
    )
    sets = {
        name: _Seen(those, request.rounds) for name, those in zip(SETS, read_questions(request), strict=True)
    }
    join_all(
        out,
        [
            Join(
                shards,
                f"{name}.jsonl",
                out / f"{name}.jsonl",
                recording.settings(name),
                len(seen.trees),
                samples=0,
                check=seen.take,
                more=seen.unexplored,
            )
            for name, seen in sets.items()
        ],
    )
    told = [f"{sum(seen.runs)} runs of {len(seen.runs)} {name} questions" for name, seen in sets.items()]
    print(f"{', '.join(told)} of {len(shards)} shards in {out}")


class _Seen:
    """What rollouts of some questions have shown.

    Args:
        questions: In order.
        rounds: Runs after which a question may have unknown ways left.
    """

    def __init__(self, questions: Sequence[Question], rounds: int) -> None:
        from trim_graph.training.rollout_tree import Tree

        self.trees, self.runs, self.rounds = [Tree(one) for one in questions], [0] * len(questions), rounds

    def take(self, record: dict[str, Any], place: str) -> None:
        """Take in a run.

        Raises:
            InputError: It is none of these questions.
        """
        from trim_graph.training.traces import parse_trace

        trace = parse_trace(record, place)
        index = trace["index"]
        if index >= len(self.trees) or trace["question"] != self.trees[index].question.text:
            raise InputError(f"{place}: question {index} is another one than in the dataset")
        self.trees[index].add(trace)
        self.runs[index] += 1

    def unexplored(self) -> list[int]:
        """Return the questions that have unknown ways and might have had more runs."""
        pairs = enumerate(zip(self.trees, self.runs, strict=True))
        return [i for i, (tree, runs) in pairs if runs < self.rounds and tree.unknown() is not None]
