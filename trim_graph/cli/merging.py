"""`trim-graph merge`: join the shards of an evaluation, of traces or of rollouts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from trim_graph.distributed.merging import Join, check_joins
from trim_graph.distributed.shards import ShardFolder, read_shards
from trim_graph.errors import InputError
from trim_graph.evaluation.arms import REFERENCES
from trim_graph.evaluation.harness import Harness
from trim_graph.evaluation.identity import code_identity
from trim_graph.evaluation.piloting import FILE, NAME, pilot_settings, pilot_units
from trim_graph.evaluation.run_files import (
    JOURNALS,
    ArmSettings,
    arm_of,
    journal_of,
    parse_row,
    read_rows_of,
    read_settings,
)
from trim_graph.evaluation.validation import Validation
from trim_graph.journal import differences, settings_beside

from .eval_request import Request
from .evaluating import GIVEN_UP, Evaluation

UNFINISHED = 3
"""Exit code: all shards are there, and there is more for them to run."""


def run_merge(out: Path) -> int:
    """Join shards, check that every question is there exactly once, and write what an unsharded run had.

    Args:
        out: What the shards were given as ``--out``, or as ``--rollouts``.

    Returns:
        The exit code: 0, or `UNFINISHED`.

    Raises:
        TrimError: Questions are missing, or shards do not belong together.
    """
    # Absolute, and read, before the folder is changed below.
    out = out.absolute()
    shards = read_shards(out)
    ways: dict[str, Callable[[Path, Sequence[ShardFolder]], int | None]] = {
        "eval": merge_evaluation,
        "collect": _merge_traces,
        "train": _merge_rollouts,
    }
    told = shards[0].told
    if told.get("command") not in ways:
        raise InputError(
            f"{shards[0].path} is a shard of {told.get('command')!r}, which this release does not know"
        )
    if different := differences(told.get("code"), code_identity(), "code"):
        raise InputError(
            f"{shards[0].path} was run by another trim-graph than this one: {'; '.join(different)}. Merge "
            "with that one"
        )
    # Paths that were given to the shards are relative to where they were called.
    called = Path(str(told.get("folder")))
    with chdir(called) if called.is_dir() else nullcontext():
        return ways[str(told["command"])](out, shards) or 0


def _merge_traces(out: Path, shards: Sequence[ShardFolder]) -> None:
    from .collecting import merge_traces

    merge_traces(out, shards)


def _merge_rollouts(out: Path, shards: Sequence[ShardFolder]) -> None:
    from .rollout_shards import merge_rollouts

    merge_rollouts(out, shards)


def merge_evaluation(out: Path, shards: Sequence[ShardFolder]) -> int:
    """Join the shards of an evaluation, and go through its course without running anything.

    Args:
        out: The folder of the evaluation.
        shards: Of it.

    Returns:
        0, or `UNFINISHED` where arms hang on what has been joined only now.

    Raises:
        TrimError: Questions are missing, or shards do not belong together.
    """
    evaluation = Evaluation(Request.of(shards[0].told["request"], out), merging=True)
    evaluation.given_up = _given_up(shards)
    harness, arms = evaluation.harness(None), _known_arms(shards)
    joins = [*_rows(evaluation, arms, out, shards), *_fitted(evaluation, harness, out, shards)]
    whole, lacking = check_joins(out, joins)
    joined = {join.name for join in whole}
    harness.remember({arm: arms[arm] for arm in arms if _name(arm) in joined})
    harness.write_settings()  # first: a folder with rows and without it is taken for no run's
    for join in whole:
        join.write()
    course = asyncio.run(evaluation.run(None))
    if course.pending:
        print(
            f"{len(shards)} shards are joined. Still to be run, by the same commands: "
            f"{', '.join(course.pending)}; then merge again{lacking}"
        )
        return UNFINISHED
    course.warnings += [
        f"{join.name} of the shards is left out: questions of it are lacking, and nothing asked for needs it"
        for join in joins
        if join.name not in joined
    ]
    of, each = len(shards), evaluation.request.concurrency
    if of > 1:
        course.warnings.append(
            f"run in {of} shards, each with {each} questions under way: seconds hang on how many ran at once"
        )
    summary = evaluation.finish(course)
    from .eval_report import show

    show(summary, out, as_json=False)
    return 0


def _known_arms(shards: Sequence[ShardFolder]) -> dict[str, ArmSettings]:
    """Return all arms that shards have begun, under this command line or an earlier one."""
    arms = dict[str, ArmSettings]()
    for folder in shards:
        known = read_settings(folder.path)
        arms = {
            **arms,
            **{arm: one for arm, one in (known["arms"] if known else {}).items() if arm not in arms},
        }
    return arms


def _given_up(shards: Sequence[ShardFolder]) -> dict[str, str]:
    """Return the baselines that a shard could not run, and why."""
    told = dict[str, str]()
    for folder in shards:
        file = folder.journal(GIVEN_UP)
        if file.exists():
            try:
                found = dict(json.loads(file.read_bytes()))
            except (ValueError, TypeError) as error:
                raise InputError(f"{file} is damaged: {error}") from error
            told |= {name: f"shard {folder.shard}: {why}" for name, why in found.items() if name not in told}
    return told


def _name(arm: str) -> str:
    """Return where in the folder of a run the journal of an arm is."""
    return str(journal_of(Path(), arm))


def _rows(
    evaluation: Evaluation, arms: dict[str, ArmSettings], out: Path, shards: Sequence[ShardFolder]
) -> Iterator[Join]:
    """Give the journals of all arms that a shard has; those that hang on what others spent may be missing."""
    plan, needed = evaluation.plan, {arm.name for arm in (*REFERENCES, *evaluation.arms)}
    for name in sorted(set().union(*(folder.journals(f"{JOURNALS}/*.jsonl") for folder in shards))):
        arm = arm_of(Path(name))
        if arm not in arms or (
            arms[arm]["kind"] == "baseline" and arms[arm]["family"] in evaluation.given_up
        ):
            continue
        settings = {**plan.settings, "arm": _arm_settings(shards, name)}
        yield Join(
            shards,
            name,
            journal_of(out, arm),
            settings,
            plan.n,
            plan.samples,
            parse_row,
            older=partial(read_rows_of, out, arm),
            what=f"the arm {arm}",
            needed=arm in needed,
        )


def _fitted(
    evaluation: Evaluation, harness: Harness, out: Path, shards: Sequence[ShardFolder]
) -> Iterator[Join]:
    """Give the journals that the baselines of this evaluation are fitted on."""
    validation, wanted = evaluation.validate(harness), set(evaluation.baselines) - set(evaluation.given_up)
    for writer, fitted in (("small", {"router", "kind"}), ("large", {"router"})):
        name = Validation.name(writer)
        there = any(folder.journal(name).exists() for folder in shards)
        if validation is not None and there and fitted & wanted:
            yield Join(shards, name, out / name, validation.settings(writer), validation.n, needed=False)
    there = any(folder.journal(NAME).exists() for folder in shards)
    if there and "entropy" in wanted and not (out / FILE).exists():
        probed = pilot_units(harness).n
        yield Join(shards, NAME, out / NAME, pilot_settings(harness), probed, needed=False)


def _arm_settings(shards: Sequence[ShardFolder], name: str) -> Any:
    """Return what the first shard that has an arm says it is; the others must say the same."""
    for folder in shards:
        beside = settings_beside(folder.journal(name))
        if beside.exists():
            try:
                return json.loads(beside.read_bytes())["settings"]["arm"]
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{beside} is damaged: {error!r}") from error
    raise InputError(f"no shard says what {name} was made with")
