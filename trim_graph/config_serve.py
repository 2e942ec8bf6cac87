"""How `trim-graph up` starts a vLLM server: the mapping ``serve`` of a ``vllm`` or ``vllm_prm`` part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from .config_places import Dtype
from .part import Part, base_folder

_OWNED = {
    "--model": "the setting model, or path in serve",
    "--served-model-name": "the setting model",
    "--host": "base_url",
    "--port": "base_url",
    "--dtype": "dtype in serve",
    "--max-model-len": "max_model_len in serve",
    "--gpu-memory-utilization": "memory_share in serve",
    "--kv-cache-memory-bytes": "kv_cache_gb in serve",
    "--runner": "type: vllm is a chat model, vllm_prm a process reward model",
}
"""Arguments that the configuration says elsewhere, and where."""


def _beside_file(value: Any, info: ValidationInfo) -> Any:
    """Make the path of an existing folder beside the file absolute; anything else may be a hub id.

    Nothing has to exist: the same file also serves on machines that only ask the servers.
    """
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.path.expanduser(os.fspath(value))
    place = base_folder(info) / text
    return os.path.normpath(place) if text.startswith((".", "/")) or place.is_dir() else text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int) else value


class Serve(Part):
    """Options of the server; the rest follows from the part itself.

    Attributes:
        gpu: Index of the GPU, or several, over which the model is split; empty: the first that is visible.
        cpu: Whether it runs on the CPU instead.
        memory_share: Share of each GPU's memory; None: what `trim_graph.serving.memory` works out.
        kv_cache_gb: Memory for keys and values, in GiB; None: what the share leaves, on a CPU 4.
        dtype: Of the weights in memory.
        max_model_len: Longest sequence, in tokens; None: the model's own.
        path: Weights, a folder or hub id, where `model` is but a name.
        example: Weights that come with trim-graph, in place of ``path``.
        args: Further arguments of ``vllm serve``; relative paths in them are relative to the file.
    """

    gpu: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed)] = Field(default_factory=list)
    cpu: bool = False
    memory_share: float | None = Field(default=None, gt=0, le=0.95)
    kv_cache_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    dtype: Dtype = "auto"
    max_model_len: int | None = Field(default=None, ge=1)
    path: Annotated[str, BeforeValidator(_beside_file)] | None = None
    example: Literal["small", "large", "prm"] | None = None
    args: list[str] = Field(default_factory=list)

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: list[str]) -> list[str]:
        for arg in args:
            flag = arg.partition("=")[0].replace("_", "-")
            # vLLM takes unambiguous beginnings of a flag, too.
            if len(flag) > 5 and "--api-key".startswith(flag):
                raise ValueError(
                    "args holds --api-key, which every user of the machine could read; put the key into an "
                    "environment variable and name that in api_key_env"
                )
            if flag == "--hf-token":
                raise ValueError(
                    "args holds --hf-token, which every user of the machine could read; put the token into "
                    "the environment variable HF_TOKEN"
                )
            if flag in _OWNED:
                raise ValueError(f"args holds {flag}, which {_OWNED[flag]} says")
        return args

    @model_validator(mode="after")
    def _check_whole(self) -> Serve:
        if self.path is not None and self.example is not None:
            raise ValueError("path and example both name the weights: give one of them")
        if self.cpu and self.gpu:
            raise ValueError("gpu and cpu contradict each other: give one of them")
        if len(set(self.gpu)) < len(self.gpu):
            raise ValueError(f"gpu names one GPU twice: {self.gpu}")
        return self

    @property
    def weights(self) -> str | None:
        """The weights named; None: the model's name is theirs."""
        if self.example is not None:
            from .examples import arithmetic

            folders: dict[str, Path] = {
                "small": arithmetic.SMALL,
                "large": arithmetic.LARGE,
                "prm": arithmetic.PRM,
            }
            return str(folders[self.example])
        return self.path
