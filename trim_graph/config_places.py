"""What the parts of a configuration file share: strict mappings, places of models, servers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from .adapters.model_source import check_model


class Part(BaseModel):
    """A mapping in the file; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def beside_file(value: Any, info: ValidationInfo) -> Any:
    """Find a model's folder beside the configuration file; anything else may be a hub id."""
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.path.expanduser(os.fspath(value))
    place = base_folder(info) / text
    # The adapters would look in the working directory, where a folder of that name is another one.
    is_path = text.startswith(("./", "../", "/")) or place.exists() or Path(text).exists()
    return check_model(place if is_path else text)


def base_folder(info: ValidationInfo) -> Path:
    """Folder that relative paths start from: the configuration file's."""
    return Path((info.context or {}).get("base", "."))


ModelPlace = Annotated[str, BeforeValidator(beside_file)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _server_urls(value: Any) -> Any:
    from .adapters.replicas import check_base_urls

    urls = value if isinstance(value, list) else [value]
    if not all(isinstance(url, str) for url in urls):
        raise ValueError("it should be an address or a list of addresses")
    check_base_urls(value)
    return value


ServerURLs = Annotated[str | list[str], BeforeValidator(_server_urls)]
"""One address, or those of several replicas of a server."""
