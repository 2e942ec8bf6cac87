"""Types of fields that parts of a configuration file share: places of models, servers, keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from .adapters.model_source import check_model
from .part import base_folder
from .redaction import check_variable_name


def beside_file(value: Any, info: ValidationInfo) -> Any:
    """Find a model's folder beside the configuration file; anything else may be a hub id."""
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.path.expanduser(os.fspath(value))
    place = base_folder(info) / text
    # The adapters would look in the working directory, where a folder of that name is another one.
    is_path = text.startswith(("./", "../", "/")) or place.exists() or Path(text).exists()
    return check_model(place if is_path else text)


ModelPlace = Annotated[str, BeforeValidator(beside_file)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _server_urls(value: Any) -> Any:
    from .adapters.replicas import check_base_urls

    urls = value if isinstance(value, list) else [value]
    if not all(isinstance(url, str) for url in urls):
        raise ValueError("base_url should be an address or a list of addresses")
    check_base_urls(value)
    return value


ServerURLs = Annotated[str | list[str], BeforeValidator(_server_urls)]
"""One address, or those of several replicas of a server."""


def _variable(name: str | None) -> str | None:
    return check_variable_name("api_key_env", name)


KeyVariable = Annotated[str | None, AfterValidator(_variable)]
"""Name of an environment variable that holds a key."""
