"""The network of Qwen2.5-Math-PRM and its loader. Imports torch; runs no code that comes with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2PreTrainedModel

ARCHITECTURE = "Qwen2ForProcessRewardModel"


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):  # type: ignore[no-untyped-call]
    """A Qwen2 backbone with a two-layer head that classifies tokens.

    The layout of https://huggingface.co/Qwen/Qwen2.5-Math-PRM-7B, which vLLM serves too: backbone under
    ``model.``, head under ``score.0`` and ``score.2``; a language model head in the file is ignored.

    Args:
        config: A Qwen2 config; ``num_labels`` is 2 (wrong, right) unless it says otherwise.
    """

    _keys_to_ignore_on_load_unexpected = [r"lm_head\."]  # noqa: RUF012 - transformers reads a plain list

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, config.num_labels or 2),
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Logits of the labels.

        Args:
            input_ids: Token ids, (batch, length).
            attention_mask: 1 for tokens, 0 for padding; pad on the right.
            positions: Row and column indices of the tokens to classify; None for all.

        Returns:
            Logits, (number of positions, labels), or (batch, length, labels) for all.
        """
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        if positions is not None:
            hidden = hidden[positions]
        logits: torch.Tensor = self.score(hidden)
        return logits


def load_prm(model: str, *, device: torch.device, dtype: str) -> Qwen2ForProcessRewardModel:
    """Load a PRM in the Qwen2.5-Math-PRM layout from safetensors.

    Code named in the config's ``auto_map`` is neither fetched nor run.

    Args:
        model: Folder or hub id.
        device: Where the weights go.
        dtype: ``auto`` or the name of a torch dtype.

    Raises:
        ValueError: The folder holds another architecture, pickled weights only, or weights without the head.
    """
    _refuse_pickles(model)
    config = Qwen2Config.from_pretrained(model)
    if ARCHITECTURE not in (config.architectures or []):
        raise ValueError(
            f"model={model!r} is a {config.architectures or 'model of unnamed architecture'}, not a PRM: "
            f'config.json must say "architectures": ["{ARCHITECTURE}"], as Qwen/Qwen2.5-Math-PRM-7B does'
        )
    loaded: Any = Qwen2ForProcessRewardModel.from_pretrained(
        model, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    network, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"model={model!r} lacks weights that a PRM needs: {', '.join(missing[:6])}"
            f"{' ...' if len(missing) > 6 else ''}. Transformers would fill them with noise"
        )
    prm: Qwen2ForProcessRewardModel = network.to(device).eval()
    return prm


def _refuse_pickles(model: str) -> None:
    folder = Path(model)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickles:
        raise ValueError(
            f"model={model!r} has its weights in pickles only ({', '.join(pickles)}), which may run code "
            "when loaded. Convert them to safetensors"
        )
    raise ValueError(f"model={model!r} holds no weights: no *.safetensors in the folder")
