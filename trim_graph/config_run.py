"""The settings of a run and the checkpoint's place in a configuration file."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from .checkpoint import CHOICES, LEDGERS, checkpoint_place
from .part import Part, base_folder
from .segment import DelimiterSteps, MarkdownSteps, PatternSteps, TokenSteps
from .settings import StepSettings


class FileSettings(StepSettings, Part):
    """The mapping ``settings``: as a graph's, but a file names no function."""

    segmentation: DelimiterSteps | PatternSteps | MarkdownSteps | TokenSteps | None = Field(
        default=None, discriminator="type", description=StepSettings.model_fields["segmentation"].description
    )


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
