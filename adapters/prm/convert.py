"""Writes a process reward model (PRM) with a value head in a layout that vLLM serves. Imports torch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from trim_graph.adapters.model_source import check_model

_HEAD = re.compile(r"v_head\.summary\.(weight|bias)")
_LEFT_OUT = re.compile(r"lm_head\.|v_head\.")
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
_INDEX = "model.safetensors.index.json"


def convert_value_head(model: str, target: Path) -> None:
    """Copies Skywork-o1-Open-PRM as a Qwen2 classifier of one label.

    vLLM has no value heads, but classifies tokens with a linear head, which is under ``score`` and may have
    a bias. So ``v_head.summary`` becomes ``score``, the language model head is left out, and config.json
    names ``Qwen2ForSequenceClassification``. The numbers stay as they are, shard by shard. Neither pickles
    nor code are read or copied.

    Args:
        model: Folder or hub id.
        target: Folder to be made.

    Raises:
        ValueError: The model has no value head on a Qwen2, no safetensors, or the target is there already.
    """
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty; name a folder that is not there yet")
    source = _folder_of(check_model(model))
    config = _converted_config(json.loads((source / "config.json").read_text("utf-8")), model)
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise ValueError(
            f"model={model!r} has no *.safetensors; pickles are not read, since they may run code"
        )
    target.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    size = 0
    for shard in shards:
        if not (weights := _renamed_weights(shard)):
            continue
        size += sum(weight.nbytes for weight in weights.values())
        save_file(weights, target / shard.name, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, shard.name)
    if missing := {"score.weight", "score.bias"} - set(places):
        shutil.rmtree(target)
        raise ValueError(
            f"model={model!r} has no value head: {', '.join(sorted(missing))} are in none of its files"
        )
    for pattern in _COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (target / _INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _folder_of(model: str) -> Path:
    """Returns the folder itself, or that of a hub id's download."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    from trim_graph.adapters.hub import hub_options

    return Path(snapshot_download(model, allow_patterns=["*.safetensors", *_COPIED], **hub_options(model)))


def _converted_config(config: dict[str, Any], model: str) -> dict[str, Any]:
    if config.get("model_type") != "qwen2":
        raise ValueError(
            f"model={model!r} is of the type {config.get('model_type')!r}; "
            "only a value head on a qwen2 is converted"
        )
    kept = {
        name: value
        for name, value in config.items()
        if name not in ("auto_map", "problem_type", "num_labels")
    }
    return {
        **kept,
        "architectures": ["Qwen2ForSequenceClassification"],
        "id2label": {"0": "right"},
        "label2id": {"right": 0},
    }


def _renamed_weights(shard: Path) -> dict[str, Any]:
    weights = {}
    with safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            if head := _HEAD.fullmatch(name):
                weights[f"score.{head[1]}"] = file.get_tensor(name)
            elif not _LEFT_OUT.match(name):
                weights[name] = file.get_tensor(name)
    return weights
