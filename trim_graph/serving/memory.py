"""Which share of a GPU's memory each server gets."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from pathlib import Path

from trim_graph.errors import SettingsError

WHOLE = 0.9
"""Most that is given away of one GPU; vLLM gives itself 0.92."""
LEAST = 0.1
"""Least for one server, where that goes: besides its weights it needs room to work in."""

_SIZE = re.compile(r"(?<![\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)
_BYTES_PER_WEIGHT = 2


def weights_bytes(weights: str) -> int | None:
    """Size of a model's weights: of the files where they are on this machine, or what the name promises.

    Args:
        weights: Folder or hub id; ``Qwen2.5-7B`` says 7 billion, ``8x7B`` 56.

    Returns:
        Bytes, at two a weight where only the name tells; None where nothing does.
    """
    folder = Path(weights) if Path(weights).is_dir() else _in_cache(weights)
    files = [file.stat().st_size for file in folder.glob("*.safetensors")] if folder else []
    if files:
        return sum(files)
    found = _SIZE.findall(weights.rpartition("/")[2])
    sizes = [int(times or 1) * float(billions) for times, billions in found]
    return int(max(sizes) * 1e9 * _BYTES_PER_WEIGHT) if sizes else None


def _in_cache(hub_id: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    try:
        config = try_to_load_from_cache(hub_id, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(config).parent if isinstance(config, str) else None


def share_out(
    given: Mapping[str, float | None], sizes: Mapping[str, int | None], gpu: Hashable
) -> dict[str, float]:
    """Divide one GPU's memory among its servers.

    A share that is given stays. The others divide what is left of `WHOLE` as their weights stand to each
    other, so that all fit if any division does, but none gets less than `LEAST`; equally where a size is
    not known.

    Args:
        given: The share of each server, or None.
        sizes: Bytes of each server's weights, or None.
        gpu: What errors call it.

    Returns:
        A share for each server, cut to hundredths; together at most `WHOLE`, unless more was given.

    Raises:
        SettingsError: The given shares leave nothing for the others, or exceed the GPU.
    """
    fixed = {name: share for name, share in given.items() if share is not None}
    open_ = [name for name in given if name not in fixed]
    left = WHOLE - math.fsum(fixed.values())
    if math.fsum(fixed.values()) > 0.95 + 1e-9:
        raise SettingsError(
            f"memory_share: {_listed(fixed)} make {math.fsum(fixed.values()):.2f} of GPU {gpu}; "
            f"together at most {WHOLE} is sensible"
        )
    if open_ and left < 0.01 * len(open_):
        raise SettingsError(
            f"memory_share: {_listed(fixed)} leave nothing of GPU {gpu} for {', '.join(open_)}; "
            f"all together get {WHOLE} at most"
        )
    known = [size for name in open_ if (size := sizes.get(name)) is not None]
    weights = {name: float(sizes.get(name) or 1) if len(known) == len(open_) else 1.0 for name in open_}
    return fixed | _divided(left, weights)


def _divided(left: float, weights: dict[str, float]) -> dict[str, float]:
    if not weights:
        return {}
    least = min(LEAST, left / len(weights))
    shares: dict[str, float] = {}
    rest = dict(weights)
    # Whoever would get too little gets the least; the others divide the rest again.
    while rest:
        free, whole = left - math.fsum(shares.values()), math.fsum(rest.values())
        poor = [name for name, weight in rest.items() if free * weight / whole < least - 1e-9]
        if not poor:
            shares |= {name: free * weight / whole for name, weight in rest.items()}
            break
        for name in poor:
            shares[name] = least
            del rest[name]
    return {name: math.floor(shares[name] * 100 + 1e-6) / 100 for name in weights}


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items())
