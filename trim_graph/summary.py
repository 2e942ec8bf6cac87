"""The summary of a run, computed from its state when it ends: steps, decisions, tokens, cost, answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from .budget.usage import StepWriter, Usage, lookahead_usage, total_cost, unpriced_scorer, warming_usage
from .conversation import extract_answer
from .errors import counted
from .routing import RunView
from .savings import net_savings
from .segmentation import Part, join_steps
from .state import Step, Summary


def summarise(view: RunView) -> Summary:
    """Returns the summary of a run that has ended."""
    state, settings, steps, usage = view.state, view.settings, view.steps, view.usage
    writers = Counter(step["writer"] for step in steps)
    small = sum(step["tokens"] for step in steps if step["writer"] == "small")
    large = sum(step["tokens"] for step in steps if step["writer"] == "large")
    by_human: dict[StepWriter, int] = {"human": writers["human"]} if writers["human"] else {}
    notes = list(state["notes"])
    text = join_steps(steps, settings.delimiter)
    if settings.thinking is not None:
        text = settings.thinking.answer_in(text, steps[0] if steps else None)
    if usage["overshoot_tokens"]:
        notes.append(
            "the large model ignored max_tokens and wrote "
            f"{counted(usage['overshoot_tokens'], 'token')} too many"
        )
    judged = usage["scorer"].get("output_tokens", 0)
    if settings.prices.given and settings.prices.scorer is None and judged:
        notes.append(unpriced_scorer(f"the scorer wrote {counted(judged, 'token')}"))
    by_writer: dict[StepWriter, int] = {"small": writers["small"], "large": writers["large"]}
    accepted: dict[StepWriter, int] = {"small": small, "large": large}
    summary = Summary(
        stopped=state["stopped"],
        answer=extract_answer(text),
        steps=by_writer | by_human,
        decisions=dict(Counter(d["decision"] for d in state["decisions"])),
        scores=list(view.scores),
        tokens={
            "small": small,
            "large": large,
            "small_discarded": usage["small"]["output_tokens"] - small,
            "large_discarded": usage["large"]["output_tokens"] - large,
            "large_unaccounted": usage["unaccounted_tokens"],
            "scorer": usage["scorer"]["input_tokens"],
            "scorer_output": usage["scorer"].get("output_tokens", 0),
        },
        usage=usage,
        cost=total_cost(usage, settings.prices),
        seconds=usage["seconds"],
        savings=net_savings(accepted | by_human, usage, settings.prices, settings.large_alone),
        notes=notes,
    )
    if settings.lookahead or "lookahead" in usage:
        lookahead = lookahead_usage(usage)
        summary["tokens"]["lookahead_discarded"] = lookahead["output_tokens"]
        summary["tokens"]["lookahead_unaccounted"] = lookahead["unaccounted_tokens"]
    if settings.warm_large or "warming" in usage:
        summary["tokens"]["warming"] = warming_usage(usage)["output_tokens"]
    if parts := _parts(steps):
        summary["parts"] = parts
    return summary


def usage_of(usage: Usage) -> UsageMetadata:
    """Returns the usage of both models together in LangChain's form, discarded drafts included."""
    writers = (usage["small"], usage["large"])
    input_tokens = sum(writer["input_tokens"] for writer in writers)
    output_tokens = sum(writer["output_tokens"] for writer in writers)
    cached = sum(writer["cached_tokens"] for writer in writers)
    return UsageMetadata(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=input_tokens + output_tokens,
        input_token_details=InputTokenDetails(cache_read=cached),
    )


def _parts(steps: Sequence[Step]) -> dict[Part, dict[StepWriter, int]]:
    """Returns the steps of each part by writer; empty if no model thinks."""
    counts = Counter((step["part"], step["writer"]) for step in steps if "part" in step)
    by_human = any(step["writer"] == "human" for step in steps)
    writers: tuple[StepWriter, ...] = ("small", "large", *(("human",) if by_human else ()))
    parts: tuple[Part, ...] = ("reasoning", "answer")
    return {part: {writer: counts[part, writer] for writer in writers} for part in parts} if counts else {}
