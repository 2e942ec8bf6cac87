"""Models on the Hugging Face hub: whether one can be had, asked once before anything of it is loaded.

The hub's client tries each request six times, over half a minute, and transformers then calls a file missing
for which no hub was reached. One request here decides instead: the error is true and comes at once.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from trim_graph.errors import SettingsError

TIMEOUT = 10.0
"""Seconds to wait for the hub."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of a hub that is there and busy; its client tries these again."""


def hub_options(model: str) -> dict[str, Any]:
    """Returns the options with which transformers loads a model.

    Args:
        model: Folder or hub id.

    Returns:
        ``local_files_only`` where the hub cannot give the model and the cache of an earlier download has it;
        else nothing.

    Raises:
        SettingsError: The model cannot be had: the hub cannot be reached, has no such model, or gives it to
            nobody without a licence or a token.
    """
    if Path(model).is_dir():
        return {}
    from huggingface_hub import constants

    return dict(_options(model, str(constants.HF_HUB_CACHE), bool(constants.HF_HUB_OFFLINE)))


@lru_cache(maxsize=64)
def _options(model: str, cache: str, offline: bool) -> tuple[tuple[str, Any], ...]:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if not offline:
            get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=TIMEOUT)
            return ()
        why = f"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids asking the hub, and the cache {cache} lacks it"
        fix = f"unset the variable, or download the model before: hf download {model}"
    except HFValidationError as error:
        raise SettingsError(f"model={model!r} is neither a folder nor a hub id: {_line(error)}") from None
    except HfHubHTTPError as error:
        if error.response.status_code in _PASSING:
            return ()
        why, fix = _refusal(model, error)
    except Exception as error:
        # Of the HTTP client, which is httpx or httpx2 by the release of the hub's.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        hub = f"the Hugging Face hub ({constants.ENDPOINT})"
        why = f"{hub} cannot be reached ({_line(error)}), and the cache {cache} lacks it"
        fix = "check the network and HTTPS_PROXY, or give the folder of a model that is here"
    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return (("local_files_only", True),)
    raise SettingsError(f"model={model!r}: {why}: {fix}")


def _refusal(model: str, error: Any) -> tuple[str, str]:
    """Returns why the hub does not give a model, and what to do about it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
    )

    page, token = f"{constants.ENDPOINT}/{model}", get_token() is not None
    if isinstance(error, GatedRepoError):
        if token:
            return "the model is gated, and the account of the token has no access", f"ask for it at {page}"
        return (
            "the model is gated, and there is no token",
            f"accept its licence at {page}, and set HF_TOKEN to a token of that account (or hf auth login)",
        )
    if isinstance(error, DisabledRepoError):
        return "the hub has disabled this model", "choose another model"
    if isinstance(error, EntryNotFoundError):
        return (
            "the model on the hub has no config.json, so it is not in the transformers layout",
            "choose a model in that layout (config.json, tokenizer.json, *.safetensors), not one in GGUF",
        )
    status = error.response.status_code
    if status in (401, 403) and not isinstance(error, RepositoryNotFoundError) and token:
        return (
            f"the hub refuses the token ({status})",
            "set HF_TOKEN to a valid token with read access (or hf auth login)",
        )
    if status in (401, 404) or isinstance(error, RepositoryNotFoundError):
        access = "a token of an account with access" if token else "a token in HF_TOKEN (or hf auth login)"
        return (
            "the hub has no such model, or it is private",
            f"check the spelling, OWNER/NAME as at {constants.ENDPOINT}/models; a private one needs {access}",
        )
    return f"the hub answered with status {status}: {_line(error)}", "try it again later"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
