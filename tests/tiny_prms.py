"""Tiny process reward models with random weights, in the layouts of the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.heads import linear_scorer
from trim_graph.examples.arithmetic import PRM

QUESTION = "What is (3 + 4) * 2?"
TEXTS = ["Step 1: 3 + 4 = 7.", "Step 2: 7 * 2 = 14.", "The answer is \\boxed{14}."]

_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "dtype": "float32",
}

_PLAIN = {"AutoTokenizer": [None, None]}

# As in Llama 3.1: the conversation's turns, trimmed, under headers. Its fixed system text is left out.
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """As Mistral's: SentencePiece pieces, byte fallback, a space put before the text, ``<s>`` before all."""
    control = ["<unk>", "<s>", "</s>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    text = f"{QUESTION} " + " ки ".join(TEXTS) + " ки - + ка так на кино 8 9 5 6 -1 +"
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=control + alphabet, show_progress=False)
    tokenizer.train_from_iterator([text] * 20, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][: len(control)]
    spec["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """The example tokenizer with the special tokens and the chat template of Llama 3."""
    backend = Tokenizer.from_str(load_tokenizer(str(PRM)).backend_tokenizer.to_str())
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=names[0], eos_token=names[-1], chat_template=LLAMA_TEMPLATE
    )


def skywork_tokenizer() -> PreTrainedTokenizerFast:
    """The example tokenizer with a ``bos_token``."""
    backend = load_tokenizer(str(PRM)).backend_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def save_math_shepherd(folder: Path) -> Path:
    """A Mistral, with a config as that of peiyi9979/math-shepherd-mistral-7b-prm."""
    tokenizer = mistral_tokenizer()
    torch.manual_seed(11)
    network = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), sliding_window=None, **_SHAPE))
    return _save(folder, tokenizer, network, tokenizer_class="LlamaTokenizer")


def save_rlhflow(folder: Path) -> Path:
    """A Llama, in the layout of RLHFlow/Llama3.1-8B-PRM-Deepseek-Data."""
    tokenizer = llama_tokenizer()
    torch.manual_seed(12)
    return _save(folder, tokenizer, LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **_SHAPE)))


def save_skywork(folder: Path) -> Path:
    """A Qwen2 with value head and language model head, in the layout of Skywork-o1-Open-PRM."""
    tokenizer = skywork_tokenizer()
    torch.manual_seed(13)
    config = Qwen2Config(vocab_size=len(tokenizer), **_SHAPE)
    network = linear_scorer(config)(config)
    head = torch.nn.Module()
    head.register_module("summary", network.score)
    with torch.no_grad():
        head.summary.bias.fill_(0.7)
    del network.score
    network.register_module("v_head", head)
    network.register_module("lm_head", torch.nn.Linear(_SHAPE["hidden_size"], len(tokenizer), bias=False))
    # As in the example weights: else AutoTokenizer puts Qwen's own pre-tokenizer in place of the file's.
    _save(folder, tokenizer, network, tokenizer_class="PreTrainedTokenizerFast", auto_map=_PLAIN)
    return rewrite_config(
        folder,
        architectures=["Qwen2ForPrmModel"],
        auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForPrmModel"},
    )


def rewrite_config(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """Change values in a JSON file of a model."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, network: Any, **tokenizer_config: Any) -> Path:
    network.save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)
    rewrite_config(folder, "tokenizer_config.json", **tokenizer_config)
    return folder
