"""Shared by all trainings: where the models are, the device, the seed, the log."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tokenizer import save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Workshop:
    """Folder and settings of the trainings."""

    out: Path
    seed: int
    device: str
    workers: int
    tokenizer: PreTrainedTokenizerFast

    def log(self, text: str) -> None:
        """Prints at once, also into a file."""
        print(text, flush=True)

    def save(self, model: Any, name: str, *, half: bool = False) -> None:
        """Writes weights, config and tokenizer to the folder ``name``.

        Args:
            model: The model, in float32.
            name: Name of the folder.
            half: Whether weights are stored in float16; the config names float32, in which they are loaded.
        """
        weights = model.to("cpu").state_dict()
        if half:
            weights = {key: weight.half() for key, weight in weights.items()}
        model.save_pretrained(self.out / name, state_dict=weights)
        save_tokenizer(self.tokenizer, self.out / name)
        model.to(self.device)

    def load(self, name: str) -> Any:
        """Loads ``small`` or ``large`` trained before."""
        from transformers import Qwen2ForCausalLM

        model: Any = Qwen2ForCausalLM.from_pretrained(self.out / name)
        return model.to(self.device)


def compiled(backbone: Any) -> Any:
    """Compiles where there is a C compiler; without one training is a third slower."""
    import torch

    return torch.compile(backbone, dynamic=True) if shutil.which("gcc") else backbone
