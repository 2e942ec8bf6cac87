"""Sources of weights: the settings `model`, `device` and `dtype`, tokenizers, and shared weights."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from trim_graph.errors import SettingsError, may_be_shown

from .hub import hub_options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DTYPES = ("auto", "float32", "bfloat16", "float16")

_loaded: WeakValueDictionary[tuple[str, ...], Any] = WeakValueDictionary()
# Loading sets process-wide defaults in torch, so one load at a time.
_load_lock = threading.Lock()

Engine = TypeVar("Engine")


def check_model(model: str | os.PathLike[str]) -> str:
    """Checks the `model` setting without loading anything.

    Args:
        model: A folder in the transformers layout, or an id on the Hugging Face hub.

    Returns:
        The setting as text, unchanged but for a leading ``~``.

    Raises:
        ValueError: It is the path of no folder, or of a folder without ``config.json``.
    """
    text = os.path.expanduser(os.fspath(model))
    folder = Path(text)
    if not folder.exists():
        if _HUB_ID.fullmatch(text):
            return text
        seen = f"model={text!r}" if may_be_shown(text) else "model holds what may be a secret"
        raise ValueError(
            f"{seen}: no such folder. Give the folder of a model in the transformers layout "
            "(config.json, tokenizer.json, *.safetensors) or a hub id, as 'Qwen/Qwen2.5-Math-1.5B-Instruct'."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model={text!r} holds no config.json, so it is not a model in the transformers layout. "
            "Give the folder that has config.json, tokenizer.json and *.safetensors in it."
        )
    return text


def check_dtype(dtype: str) -> str:
    """Checks the `dtype` setting: one of ``auto`` (as stored), ``float32``, ``bfloat16``, ``float16``."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known; choose one of {', '.join(_DTYPES)}")
    return dtype


def require_local_extra() -> None:
    """Imports torch and transformers, or raises an error that says how to install them.

    Raises:
        ImportError: One of them is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'models in this process need torch and transformers: pip install "trim-graph[local]" ({error})'
        ) from error


def pick_device(device: str) -> torch.device:
    """Turns the `device` setting into a device; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: torch does not know the name, or has no such device here.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not known; use 'cpu', 'cuda', 'cuda:0' or 'auto'") from error
    if target.type == "cuda":
        _check_cuda(device, target.index or 0)
    elif target.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(f"device={device!r}, but torch finds no Apple GPU here: choose 'cpu' or 'auto'")
    return target


def _check_cuda(device: str, index: int) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index < count:
        return
    if count:
        raise SettingsError(
            f"device={device!r}, but torch sees {count} GPU{'s' if count > 1 else ''} here, counted from 0: "
            f"choose cuda:{count - 1} or lower, or check CUDA_VISIBLE_DEVICES"
        )
    built = torch.version.cuda or torch.version.hip
    why = "finds no GPU here" if built else "is a build without CUDA"
    fix = "check nvidia-smi and CUDA_VISIBLE_DEVICES" if built else "install a torch with CUDA (pytorch.org)"
    raise SettingsError(
        f"device={device!r}, but torch {torch.__version__} {why}: choose device cpu or auto, or {fix}"
    )


def check_available(entry: Any) -> None:
    """Checks that the device and the weights of a model in this process are to be had; loads nothing.

    Args:
        entry: Settings of a model or scorer: ``device`` and, where it names weights, ``model``.

    Raises:
        ValueError: torch has no such device here, or the hub does not give the weights.
    """
    if (device := getattr(entry, "device", None)) is not None:
        pick_device(device)
    if (model := getattr(entry, "model", None)) is not None:
        hub_options(model)


def import_transformers() -> None:
    """Imports transformers, without its advice to install torch: tokenizers do not need it.

    Raises:
        ImportError: It is not installed.
    """
    log = logging.getLogger("transformers")
    log.addFilter(_is_no_advice)
    try:
        import transformers  # noqa: F401
    finally:
        log.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()


def load_tokenizer(model: str, *, chat: bool = True) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer exactly as its ``tokenizer.json`` says.

    `AutoTokenizer` does not: for some model types (qwen2 in transformers 5.23) it puts the type's usual
    normaliser and pre-tokenizer in place of those in the file.

    Args:
        model: Folder or hub id.
        chat: Whether it needs a chat template.

    Raises:
        ValueError: It has no ``tokenizer.json``, or no chat template where it needs one; or the hub does not
            give it, see `trim_graph.adapters.hub`.
        ImportError: transformers is not installed, or jinja2 where it needs a chat template.
    """
    import_transformers()
    if chat:
        import jinja2  # noqa: F401  # else transformers misses it only when the template is rendered
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.hub import cached_file

    options = hub_options(model)
    if cached_file(model, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **options) is None:
        raise ValueError(f"model={model!r} has no tokenizer.json, which this adapter needs")
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(model, **options)
    if chat and not tokenizer.chat_template:
        raise ValueError(f"model={model!r}: its tokenizer has no chat template (tokenizer_config.json)")
    return tokenizer


def local_file(model: str, name: str) -> Path | None:
    """Finds a file of a model on this machine: in its folder, or in the cache of the Hugging Face hub.

    Args:
        model: Folder or hub id.
        name: Name of the file.

    Returns:
        Its path; None where it is not here. Nothing is downloaded.
    """
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, name)
    except (ImportError, ValueError):  # not installed, or no hub id
        return None
    return Path(found) if isinstance(found, str) else None


def max_positions(model: Any) -> int | None:
    """Returns a transformers model's longest sequence in tokens; None where its config does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def shared_engine(
    build: Callable[[str, torch.device, str], Engine],
    model: str,
    device: str,
    dtype: str,
    *,
    variant: str = "",
) -> Engine:
    """Returns loaded weights: one copy per process for the same model, device, dtype and variant.

    The copy is freed when the last adapter that uses it is gone.

    Args:
        build: Loads them.
        model: Folder or hub id.
        device: The `device` setting.
        dtype: The `dtype` setting.
        variant: Further distinction of copies: the part of the weights that ``build`` keeps.
    """
    require_local_extra()
    target = pick_device(device)
    place = os.path.realpath(model) if os.path.exists(model) else model
    key = (build.__module__, place, str(target), dtype, variant)
    with _load_lock:
        engine: Engine | None = _loaded.get(key)
        if engine is None:
            engine = build(model, target, dtype)
            _loaded[key] = engine
    return engine
