"""Networks of process reward models (PRMs), their loaders, and the worker that batches calls to them.

Imports torch; runs no code that comes with the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2PreTrainedModel

from trim_graph.adapters.hub import hub_options
from trim_graph.adapters.model_source import max_positions
from trim_graph.adapters.transformers.batching import BatchWorker

from .formats import Head
from .scores import probability

if TYPE_CHECKING:
    from trim_graph.adapters.transformers.batching import RewardJob

Positions = tuple[torch.Tensor, torch.Tensor]
"""Row and column indices of the tokens to rate."""

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
        positions: Positions | None = None,
    ) -> torch.Tensor:
        """Returns the logits of the labels.

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


class LinearHead:
    """Backbone of a causal model with a linear head ``score``, one value a token; see `linear_scorer`."""

    _keys_to_ignore_on_load_unexpected = [r"lm_head\."]  # noqa: RUF012 - transformers reads a plain list

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))  # type: ignore[attr-defined, no-untyped-call]
        self.score = nn.Linear(config.hidden_size, 1)
        self.post_init()  # type: ignore[attr-defined]

    def hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: Positions
    ) -> torch.Tensor:
        """Returns the last hidden states at ``positions``, (number of positions, hidden size)."""
        backbone = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        output = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        states: torch.Tensor = output.last_hidden_state[positions]
        return states

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: Positions
    ) -> torch.Tensor:
        """Returns the values at ``positions``, (number of positions, 1), in float32."""
        states = self.hidden(input_ids, attention_mask, positions)
        # Three digits of bfloat16 are too few for a sum over thousands of products.
        value: torch.Tensor = nn.functional.linear(
            states.float(), self.score.weight.float(), self.score.bias.float()
        )
        return value


def linear_scorer(config: PreTrainedConfig) -> Any:
    """Makes the class of a causal model with a linear head of one value at every token.

    Its weights are in the layout that transformers gives sequence classifiers: the backbone under its usual
    prefix (``model.``), the head under ``score``; the head has a bias. vLLM serves that layout.

    Args:
        config: Config of the model. Only model types that come with transformers will do.

    Returns:
        A subclass of `transformers.PreTrainedModel`, named ``<Base>ForSequenceClassification``; its instances
        are `LinearHead`.

    Raises:
        ValueError: The model type has no causal language model of text alone.
    """
    kind = type(config)
    if (
        kind not in MODEL_FOR_CAUSAL_LM_MAPPING
        or kind not in MODEL_MAPPING
        or not hasattr(config, "hidden_size")
    ):
        raise ValueError(
            f"a model of the type {config.model_type!r} is no causal language model of text alone, which a "
            "scorer with a linear head needs"
        )
    base = _pretrained_class(MODEL_MAPPING[kind])
    name = base.__name__.replace("PreTrainedModel", "ForSequenceClassification")
    return type(name, (LinearHead, base), {"__module__": __name__})


def _pretrained_class(backbone: Any) -> Any:
    """Returns the class next to `PreTrainedModel`, which knows the model type's prefix and initialisation."""
    return next(
        kind
        for kind in reversed(backbone.__mro__)
        if issubclass(kind, PreTrainedModel) and kind is not PreTrainedModel
    )


# Their logits are the plain product of hidden state and output matrix; others scale or cap them.
_LANGUAGE_MODELS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class AnswerLogits(nn.Module):
    """A causal language model of which only the logits of two answers are computed.

    Args:
        language_model: Gives the backbone and the rows of the output matrix; the rest of that is let go.
        answer_ids: Tokens that say (wrong, right).
    """

    def __init__(self, language_model: Any, answer_ids: tuple[int, int]) -> None:
        super().__init__()
        self.config = language_model.config
        self.model = language_model.model
        rows = language_model.lm_head.weight[list(answer_ids)]
        self.answers = nn.Parameter(rows.detach().clone(), requires_grad=False)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: Positions
    ) -> torch.Tensor:
        """Returns the logits (wrong, right) of the next token at ``positions``, (number of positions, 2)."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: torch.Tensor = output.last_hidden_state[positions].float() @ self.answers.float().T
        return logits


def load_network(
    head: Head, model: str, *, answer_ids: tuple[int, int] | None, device: torch.device, dtype: str
) -> Any:
    """Loads the network for a format's head from safetensors.

    Args:
        head: See `trim_graph.adapters.prm.formats.PRMFormat`.
        model: Folder or hub id.
        answer_ids: The format's, where the head is ``tokens``.
        device: Device of the weights.
        dtype: ``auto`` or the name of a torch dtype.

    Raises:
        ValueError: The folder holds another architecture, pickled weights only, or weights that lack some.
    """
    if head == "labels":
        return load_prm(model, device=device, dtype=dtype)
    if head == "value":
        return _placed(load_linear_scorer(model, dtype), device)
    if answer_ids is None:
        raise ValueError("a language model as a PRM needs to know which tokens say wrong and right")
    return _placed(AnswerLogits(_load_language_model(model, dtype), answer_ids), device)


def load_prm(model: str, *, device: torch.device, dtype: str) -> Qwen2ForProcessRewardModel:
    """Loads a PRM in the Qwen2.5-Math-PRM layout from safetensors.

    Code named in the config's ``auto_map`` is neither fetched nor run.

    Args:
        model: Folder or hub id.
        device: Device of the weights.
        dtype: ``auto`` or the name of a torch dtype.

    Raises:
        ValueError: The folder holds another architecture, pickled weights only, or weights without the head.
    """
    config = Qwen2Config.from_pretrained(model, **hub_options(model))
    if ARCHITECTURE not in (config.architectures or []):
        raise ValueError(
            f"model={model!r} is a {config.architectures or 'model of unnamed architecture'}, not a PRM in "
            f'the format qwen: config.json must say "architectures": ["{ARCHITECTURE}"], as '
            "Qwen/Qwen2.5-Math-PRM-7B does"
        )
    network = _load(Qwen2ForProcessRewardModel, model, dtype, config=config)
    prm: Qwen2ForProcessRewardModel = _placed(network, device)
    return prm


def _placed(network: Any, device: torch.device) -> Any:
    return network.to(device).eval()


def load_linear_scorer(model: str, dtype: str) -> Any:
    """Loads a causal model with a linear head: a scorer trained here, or a value head on a Qwen2.

    Skywork-o1-Open-PRM has its head under ``v_head.summary``; see `trim_graph.adapters.prm.convert`.

    Args:
        model: Folder or hub id.
        dtype: ``auto`` or the name of a torch dtype.

    Raises:
        ValueError: The model type has no such layout, or the weights lack some.
    """
    # No code from the folder: transformers' own classes or none.
    config = AutoConfig.from_pretrained(model, trust_remote_code=False, **hub_options(model))
    renamed = {r"^v_head\.summary\.(weight|bias)$": r"score.\1"}
    return _load(linear_scorer(config), model, dtype, config=config, key_mapping=renamed)


def load_base(model: str, dtype: str) -> Any:
    """Loads a causal model, and puts a head on it that still has to be trained.

    Args:
        model: Folder or hub id of a causal language model, or of a scorer trained here.
        dtype: ``auto`` or the name of a torch dtype.

    Returns:
        A `LinearHead`; the weights of its head are in float32, and random unless the model is a scorer.

    Raises:
        ValueError: The model type has no such layout, or the weights lack some of the backbone.
    """
    config = AutoConfig.from_pretrained(model, trust_remote_code=False, **hub_options(model))
    config.num_labels = 1
    kind = linear_scorer(config)
    kind._keys_to_ignore_on_load_missing = [r"score\."]
    network = _load(kind, model, dtype, config=config)
    network.score.float()
    return network


def _load_language_model(model: str, dtype: str) -> Any:
    settings, _ = PreTrainedConfig.get_config_dict(model, **hub_options(model))
    named = settings.get("architectures") or []
    for kind in _LANGUAGE_MODELS:
        if kind.__name__ in named:
            return _load(kind, model, dtype)
    known = ", ".join(kind.__name__ for kind in _LANGUAGE_MODELS)
    raise ValueError(
        f"model={model!r} is a {named or 'model of unnamed architecture'}; as a PRM that answers + or - this "
        f"adapter takes {known}"
    )


def _load(kind: Any, model: str, dtype: str, **options: Any) -> Any:
    """Loads weights, all of them, from safetensors."""
    _refuse_pickles(model)
    try:
        network, info = kind.from_pretrained(
            model,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **hub_options(model),
        )
    except OSError as error:
        # Of a hub id, only the download shows it.
        if "does not appear to have a file named" in str(error):
            raise ValueError(f"model={model!r} has no *.safetensors: {error}. {_CONVERT}") from error
        raise
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"model={model!r} lacks weights that a PRM needs: {', '.join(missing[:6])}"
            f"{' ...' if len(missing) > 6 else ''}. Transformers would fill them with noise"
        )
    return network


_CONVERT = (
    "Convert it once where running its code does no harm: AutoModelForCausalLM.from_pretrained(MODEL)"
    ".save_pretrained(FOLDER), and the same with AutoTokenizer"
)


def _refuse_pickles(model: str) -> None:
    folder = Path(model)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickles:
        raise ValueError(
            f"model={model!r} has its weights in pickles only ({', '.join(pickles)}), which may run code "
            f"when loaded. {_CONVERT}"
        )
    raise ValueError(f"model={model!r} holds no weights: no *.safetensors in the folder")


_BATCH_TOKENS = 16384
"""Most tokens in a batch, padding included, that more than one solution make up."""


class RewardEngine:
    """A PRM's weights and their worker.

    Args:
        model: Folder or hub id.
        device: Device of the weights.
        dtype: ``auto`` or the name of a torch dtype.
        head: Head that the format is read from.
        answer_ids: The format's, where that is a language model.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        dtype: str,
        *,
        head: Head = "labels",
        answer_ids: tuple[int, int] | None = None,
    ) -> None:
        self._model = load_network(head, model, answer_ids=answer_ids, device=device, dtype=dtype)
        self._device = device
        self.max_positions = max_positions(self._model)
        self.worker: BatchWorker[RewardJob] = BatchWorker(
            self._run, fits=self._fits, name=f"trim-graph score {model}"
        )

    @staticmethod
    def _fits(batch: list[RewardJob], job: RewardJob) -> bool:
        lengths = [len(one.input.ids) for one in [*batch, job]]
        padded = max(lengths) * len(lengths)
        # A batch more than half padding costs more than two batches.
        return padded <= _BATCH_TOKENS and padded <= 2 * sum(lengths)

    @torch.inference_mode()
    def _run(self, jobs: list[RewardJob]) -> None:
        longest = max(len(job.input.ids) for job in jobs)
        ids = torch.zeros((len(jobs), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        rows: list[int] = []
        columns: list[int] = []
        for i, job in enumerate(jobs):
            # Padding on the right is never attended to by tokens before it.
            ids[i, : len(job.input.ids)] = torch.tensor(job.input.ids)
            mask[i, : len(job.input.ids)] = 1
            rows += [i] * len(job.input.step_positions)
            columns += job.input.step_positions
        positions = torch.tensor(rows, device=self._device), torch.tensor(columns, device=self._device)
        outputs = self._model(ids.to(self._device), mask.to(self._device), positions)
        scores = [probability(one) for one in outputs.float().tolist()]
        for job in jobs:
            count = len(job.input.step_positions)
            job.settle(scores[:count])
            scores = scores[count:]
