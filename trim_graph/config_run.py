"""The settings of a run and the checkpoint's place in a configuration file."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from .checkpoint import CHOICES, LEDGERS, checkpoint_place
from .context import OnLargeError, OnScorerError, OnSmallError
from .part import Part, base_folder
from .prompts import DEFAULT_INSTRUCTION
from .segment import DEFAULT_DELIMITER, DelimiterSteps, MarkdownSteps, PatternSteps, TokenSteps
from .thinking import Thinking


class RunSettings(Part):
    """What a run goes by; as in `trim_graph.context.Settings`."""

    max_steps: int = Field(default=32, ge=1)
    max_step_tokens: int = Field(default=512, ge=1)
    delimiter: str = Field(default=DEFAULT_DELIMITER, min_length=1)
    segmentation: DelimiterSteps | PatternSteps | MarkdownSteps | TokenSteps | None = Field(
        default=None, discriminator="type"
    )
    thinking: Thinking | None = Thinking()
    instruction: str | None = DEFAULT_INSTRUCTION
    max_repeats: int | None = Field(default=3, ge=1)
    seed: int | None = None
    on_scorer_error: OnScorerError = "raise"
    on_large_error: OnLargeError = "raise"
    on_small_error: OnSmallError = "raise"
    ask_below: float | None = Field(default=None, ge=0, le=1)
    lookahead: bool = False


def _placed(value: Any, info: ValidationInfo, setting: str) -> str:
    """Check a specification; a relative path is relative to the file."""
    if not isinstance(value, str | None):
        raise ValueError(f"{setting} is not a text: choose {CHOICES if setting == 'checkpoint' else LEDGERS}")
    place = checkpoint_place(value, setting)
    if place.kind != "sqlite":
        return place.spec
    return f"sqlite:{base_folder(info) / os.path.expanduser(place.place)}"


def placed_checkpoint(value: Any, info: ValidationInfo) -> str:
    """Check a checkpoint's specification."""
    return _placed(value, info, "checkpoint")


def placed_ledger(value: Any, info: ValidationInfo) -> str | None:
    """Check a ledger's specification, as a checkpoint's; null is none."""
    if value is None:
        return None
    placed = _placed(value, info, "ledger")
    if placed == "none":
        raise ValueError(f"ledger cannot be none: choose {LEDGERS}")
    return placed


CheckpointSpec = Annotated[str, BeforeValidator(placed_checkpoint)]
LedgerSpec = Annotated[str | None, BeforeValidator(placed_ledger)]
