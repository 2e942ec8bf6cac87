"""An application that answers with the large arithmetic model, and the shadow beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage

from trim_graph import DEFAULT_INSTRUCTION, Prices, Quota, Shadow
from trim_graph.config import Parts, build_parts, example_config
from trim_graph.examples.arithmetic import Problem, problems

PRICES = Prices.model_validate(
    {"small": {"input": 0.1, "output": 0.3}, "large": {"input": 1.5, "output": 4.5}, "scorer": {"input": 0.1}}
)
"""Per million tokens: the ratio of a hosted 72B model to a 7B one, with a 7B reward model."""


def questions(n: int) -> list[Problem]:
    """Returns problems that the models were not trained on."""
    return problems("standard", n, part="test")


def build_shadow(record: Path, *, run_rate: float, parts: Parts | None = None) -> tuple[Any, Shadow]:
    """Returns the application's model, watched, and the shadow.

    Args:
        record: File of the records.
        run_rate: Share of the questions that the shadow routes with the large model.
        parts: The models; default: new ones.
    """
    config = example_config()
    parts = parts or build_parts(config)
    shadow = Shadow(
        parts.small,
        parts.large,
        parts.scorer,
        policy=config.policy.build(),
        answers="large",
        record=record,
        run_rate=run_rate,
        shadow_budget=Quota(large_tokens=100_000),
        prices=PRICES,
        text=True,
        instruction=None,  # the application's own prompt asks for steps
        max_steps=16,
        max_step_tokens=64,
    )
    return shadow.watch(parts.large), shadow


def answer(model: Any, asked: Sequence[Problem]) -> list[str]:
    """Answers questions as the application did before there was a shadow."""
    return [
        str(model.invoke([SystemMessage(DEFAULT_INSTRUCTION), HumanMessage(problem.question)]).text)
        for problem in asked
    ]
