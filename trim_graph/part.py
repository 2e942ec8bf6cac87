"""Parts of a configuration: strict mappings, whose relative paths start at the folder of the file."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationInfo


class Part(BaseModel):
    """A mapping of the configuration; a key it does not know is an error."""

    # Hidden, since a traceback shows pydantic's own words, and a wrong value may hold a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def base_folder(info: ValidationInfo) -> Path:
    """Return the folder that relative paths start from: the configuration file's."""
    return Path((info.context or {}).get("base", "."))
