"""`trim-graph plan`: from traces, published parameters or a step model to a policy file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from trim_graph.errors import SettingsError
from trim_graph.training.settings import Terms

from .options import PlanOptions, settings_of
from .terminal import need

if TYPE_CHECKING:
    from trim_graph.policies.pomdp import BeliefKind, Plan
    from trim_graph.training.simulator import BatchPolicy, EpisodeStats
    from trim_graph.training.step_model import StepModel

SEED = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Results of a policy in simulation."""

    name: str
    cost: float | None
    stats: EpisodeStats
    file: Path | None = None


def run_plan(options: PlanOptions) -> None:
    """Plans, writes the policy files, and prints the results of simulated solutions.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
    """
    need("cli,policies", "numpy", "safetensors")
    if options.plot is not None:
        need("cli,train", "matplotlib", "scipy")
    files = _files(options)
    model, data = _model(options)
    from trim_graph.policies.files import save_policy
    from trim_graph.policies.pomdp import pomdp
    from trim_graph.training.planner import BatchPomdp, solve
    from trim_graph.training.simulator import HANDOVER, StatelessBatchPolicy

    if options.model_out is not None:
        model.save(options.model_out)
    if options.plot is not None:
        from trim_graph.training.fitting import draw

        draw(model, options.plot, data)
    unlimited = "large alone" if options.budget is None else "large alone, no limit"
    rows = [
        _row(options, model, "small alone", None, StatelessBatchPolicy(lambda seen: 0 * seen.index)),
        _row(
            options,
            model,
            unlimited,
            None,
            StatelessBatchPolicy(lambda seen: 0 * seen.index + HANDOVER),
            None,
        ),
    ]
    for cost, file in files:
        terms = settings_of(options, Terms, cost_per_token=cost)
        plan = solve(
            model, terms, belief=_belief(options), budget=options.budget, belief_step=options.belief_step
        )
        save_policy(pomdp(plan), file, **_made(options, model, plan))
        rows.append(_row(options, model, "plan", cost, BatchPomdp(plan), options.budget, file))
    _show(options, model, rows)


def _files(options: PlanOptions) -> list[tuple[float, Path]]:
    """Returns each cost with the file of its plan, or refuses before anything is read."""
    out = options.out
    if out.suffix != ".json":
        raise SettingsError(f"--out {out}: the name must end in .json")
    for option, file in (("--out", out), ("--model-out", options.model_out), ("--plot", options.plot)):
        if file is not None and not (
            file.absolute().parent.is_dir() and os.access(file.absolute().parent, os.W_OK)
        ):
            raise SettingsError(f"{option} {file}: the folder {file.absolute().parent} cannot be written to")
    costs = tuple(dict.fromkeys(options.cost_per_token))
    if not costs:
        if options.budget is None:
            raise SettingsError(
                "a large token costs nothing and nothing limits them: give --cost-per-token or --budget"
            )
        costs = (0.0,)
    if len(costs) == 1:
        return [(costs[0], out)]
    return [(cost, out.with_name(f"{out.stem}-{cost:g}.json")) for cost in costs]


def _belief(options: PlanOptions) -> BeliefKind:
    from trim_graph.policies.pomdp import BeliefKind

    for kind in get_args(BeliefKind):
        if options.belief == kind:
            return kind  # type: ignore[no-any-return]
    raise SettingsError(f"--belief {options.belief}: choose one of {', '.join(get_args(BeliefKind))}")


def _model(options: PlanOptions) -> tuple[StepModel, Any]:
    """Returns the step model of a source of any kind, and the data of its traces, if it has some."""
    from trim_graph.training.step_model import FORMAT, StepModel, load_published, read_document

    _belief(options)
    source, tokens = options.source, None if options.tokens is None else (options.tokens,)
    if source.suffix in (".jsonl", ".parquet"):
        need("train", "scipy")
        from trim_graph.evaluation.traces import read_traces
        from trim_graph.training.fitting import fit, read_training_data

        data = read_training_data(read_traces(source))
        model = fit(
            data,
            p_large=options.p_large,
            tokens=tokens,
            bins=20 if options.bins is None else options.bins,
            made={"traces": source.name},
        )
        return model, data
    if options.bins is not None:
        raise SettingsError(
            f"--bins {options.bins}: only where traces are read; {source} has bins of its own"
        )
    document = read_document(source)
    if document.get("format") == FORMAT:
        model = StepModel.load(source)
    elif "obs" in document:
        model = load_published(source)
    else:
        raise SettingsError(
            f"{source}: neither traces (.jsonl, .parquet), nor a step model, nor published parameters"
        )
    return model.changed(p_large=options.p_large, tokens=tokens), None


def _made(options: PlanOptions, model: StepModel, plan: Plan) -> dict[str, Any]:
    return {
        "command": "trim-graph plan",
        "source": options.source.name,
        "step_model": {"p_small": model.p_small, "p_large": model.p_large, **model.made},
        "budget": options.budget,
        "cost_per_draft": options.cost_per_draft,
        "belief_step": options.belief_step,
        "value": plan.start(),
    }


def _row(
    options: PlanOptions,
    model: StepModel,
    name: str,
    cost: float | None,
    policy: BatchPolicy,
    budget: int | None = None,
    file: Path | None = None,
) -> Row:
    from trim_graph.training.simulator import simulate

    limit = float("inf") if budget is None else budget
    return Row(name, cost, simulate(model, policy, options.simulate, seed=SEED, budget=limit), file)


def _show(options: PlanOptions, model: StepModel, rows: list[Row]) -> None:
    from rich.table import Table

    from .common import Console

    limit = f", at most {options.budget} large tokens" if options.budget is not None else ""
    console = Console()
    console.print(
        f"A step is right with {model.p_small:.3f} by the small model, {model.p_large:.3f} by the large one. "
        f"{options.simulate} simulated solutions each{limit}; tokens and calls are those of the large model:",
        soft_wrap=True,
    )
    table = Table(box=None)
    for name in ("policy", "a token", "accuracy", "tokens", "calls"):
        table.add_column(name, no_wrap=True)
    table.add_column("file", overflow="fold")
    for row in rows:
        stats = row.stats
        error = (stats.right.mean() * (1 - stats.right.mean()) / len(stats.right)) ** 0.5
        table.add_row(
            row.name,
            "-" if row.cost is None else f"{row.cost:g}",
            f"{stats.right.mean():.3f} ± {1.96 * error:.3f}",
            f"{stats.large_tokens.mean():.1f}",
            f"{stats.large_calls.mean():.2f}",
            "-" if row.file is None else str(row.file),
        )
    console.print(table)
