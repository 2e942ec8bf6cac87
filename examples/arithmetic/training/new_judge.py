"""The process reward model before its training: the large model, widened, and layers on top that compare.

The large model knows which token should come next, but soon forgets which one it reads: linear probes told
all digits apart in its embeddings, and half of them two layers later. A judge has to hold one against the
other. So beside the large model's states, in dimensions of its own, each token's code travels up unchanged,
and the first layer on top begins as the comparison itself: one head looks at the place before, notes there
what the large model expects here, and the gates of the layer pick out the expectation of the token that came.
What is made of it, step by step, is learned.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from trim_graph.adapters.prm.heads import ARCHITECTURE, Qwen2ForProcessRewardModel

from .corpus import Judged, judged_prompt
from .tokenizer import PRM_SYSTEM, STEP, STEP_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LAYERS_ON_TOP = 2
HEAD = 32
"""Width of a head, of the large model too."""
CODES = HEAD
"""Dimensions of the codes: one for each of the tokens written most often, the last for all others."""
NOTES = HEAD
"""Dimensions, empty below, where the first layer on top notes what was expected; the last for the verdict."""
SHRUNK = 0.05
"""Factor of the large model's states, which changes nothing that it computes: layers on top would not be
heard beside states of their size."""
CODE_SIZE = 0.001
"""Too small to be seen beside those states; the layers on top enlarge it."""
LOGITS, GATE, VERDICT = 0.1, 4.0, 0.5
"""Factors of the comparison that bring it to the size of the states."""
_LOOKS_BACK_BY = (5, 12.0)
"""How many of the fastest turning pairs of a head, and with what strength, point to the place before."""
_SAMPLE = 1000


def new_judge(large: Any, tokenizer: PreTrainedTokenizerFast, solutions: Sequence[Judged]) -> Any:
    """Builds it.

    Args:
        large: The large model; not changed.
        tokenizer: The tokenizer of all models.
        solutions: Show how often tokens are written, and how large the states are.
    """
    width = large.config.hidden_size + CODES + NOTES
    settings = {
        "hidden_size": width,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD,
        "num_hidden_layers": large.config.num_hidden_layers + LAYERS_ON_TOP,
        "num_labels": 2,
        "tie_word_embeddings": False,
    }
    config = type(large.config)(**{**large.config.to_dict(), **settings, "layer_types": None})
    config.architectures = [ARCHITECTURE]
    model: Any = Qwen2ForProcessRewardModel(config)
    sample = solutions[:: max(1, len(solutions) // _SAMPLE)]
    written = _written_most(tokenizer, sample)
    with torch.no_grad():
        _take_over(model, large)
        _give_codes(model, tokenizer, written, solver_width=large.config.hidden_size)
        _begin_on_top(model, size=_size_of_states(model, large, tokenizer, sample[:30]))
        _begin_as_comparison(model, large, written)
    return model


def layers_on_top(model: Any) -> Any:
    """Returns the layers that are the judge's own."""
    return model.model.layers[-LAYERS_ON_TOP:]


def carried(model: Any) -> slice:
    """Returns where the codes are: layers only read them."""
    end = model.config.hidden_size - NOTES
    return slice(end - CODES, end)


def _written_most(tokenizer: PreTrainedTokenizerFast, solutions: Sequence[Judged]) -> list[int]:
    encode: Any = tokenizer.backend_tokenizer.encode_batch
    steps = [step for one in solutions for step in one.steps]
    counts = Counter(chain.from_iterable(encoded.ids for encoded in encode(steps)))
    return [token for token, _ in counts.most_common(CODES - 1)]


def _take_over(model: Any, large: Any) -> None:
    """Copies the large model; it computes what it did, and reads and writes nothing in the new dimensions."""
    narrow = large.config.hidden_size
    # A norm divides by the root of the mean over all dimensions.
    wider = math.sqrt(narrow / model.config.hidden_size)
    known = large.model.state_dict()
    for name, weight in model.model.state_dict().items():
        if name not in known:
            continue
        old = known[name]
        if "norm" in name:
            weight[:narrow] = old * wider
        elif old.ndim == 1:
            weight.zero_()
            weight[: len(old)] = old
        else:
            adds = any(part in name for part in ("embed", "o_proj", "down_proj"))
            weight.zero_()
            weight[: old.shape[0], : old.shape[1]] = old * (SHRUNK if adds else 1.0)


def _give_codes(
    model: Any, tokenizer: PreTrainedTokenizerFast, written: Sequence[int], *, solver_width: int
) -> None:
    ids, embeddings = tokenizer.get_vocab(), model.model.embed_tokens.weight
    codes = torch.full((len(embeddings),), CODES - 1)
    codes[torch.tensor(written)] = torch.arange(len(written))
    embeddings[torch.arange(len(embeddings)), solver_width + codes] = CODE_SIZE
    # To the large model the step token is new, and it is where a blank line was.
    embeddings[ids[STEP], :solver_width] = embeddings[ids[STEP_END], :solver_width]
    embeddings[ids[STEP], solver_width:] = 0.0


def _size_of_states(
    model: Any, large: Any, tokenizer: PreTrainedTokenizerFast, solutions: Sequence[Judged]
) -> float:
    sizes = []
    for one in solutions:
        ids = tokenizer(judged_prompt(PRM_SYSTEM, one.question, one.steps)).input_ids
        out = model.model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        sizes.append(out.hidden_states[large.config.num_hidden_layers][0].pow(2).mean(-1).sqrt())
    return float(torch.cat(sizes).median())


def _begin_on_top(model: Any, *, size: float) -> None:
    """Lets the layers on top add nothing yet, and see the codes as large as the states."""
    for layer in layers_on_top(model):
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[carried(model)] = size / CODE_SIZE


def _begin_as_comparison(model: Any, large: Any, written: Sequence[int]) -> None:
    narrow, width = large.config.hidden_size, model.config.hidden_size
    layer, each = layers_on_top(model)[0], torch.arange(len(written))
    codes, notes = carried(model).start + each, width - NOTES + each
    # As the large model reads its states out, so does the head that looks back.
    layer.input_layernorm.weight[:narrow] = large.model.norm.weight * math.sqrt(narrow / width)
    attention, network = layer.self_attn, layer.mlp
    _look_back(attention, model.config.rope_parameters["rope_theta"])
    attention.v_proj.weight[:HEAD] = 0.0
    readout = large.model.embed_tokens.weight[torch.tensor(written)]
    attention.v_proj.weight[: len(written), :narrow] = readout * LOGITS
    attention.o_proj.weight[notes, each] = 1.0
    network.gate_proj.weight[each] = network.up_proj.weight[each] = 0.0
    network.gate_proj.weight[each, codes] = GATE
    network.up_proj.weight[each, notes] = 1.0
    network.down_proj.weight[width - 1, each] = VERDICT


def _look_back(attention: Any, theta: float) -> None:
    """Turns the first head to the place before, by biases alone.

    Rotary embeddings (Su et al. 2021) turn each pair of dimensions by its speed from place to place: the
    query begins one place behind the key.
    """
    pairs, strength = _LOOKS_BACK_BY
    half = HEAD // 2
    speeds = theta ** (-torch.arange(pairs) / half)
    query, key = torch.zeros(HEAD), torch.zeros(HEAD)
    key[:pairs] = strength
    query[:pairs] = strength * torch.cos(speeds)
    query[half : half + pairs] = -strength * torch.sin(speeds)
    for projection, bias in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[:HEAD] = 0.0
        projection.bias[:HEAD] = bias
