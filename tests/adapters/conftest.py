"""Tiny models, made anew for the session: a random Qwen2, its PRM twin, and models that recite a script."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

torch = pytest.importorskip("torch", reason="the local extra is not installed")
pytest.importorskip("transformers", reason="the local extra is not installed")

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

torch.set_num_threads(1)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PIECES = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|[\r\n]+|\s+(?!\S)|\s+"
_CORPUS = [
    "system\nuser\nassistant\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "First, add 3 and 4 to get 7.\n\nThen double it: 14.\n\nThe answer is \\boxed{14}.\n\n",
] * 20


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<extra_0>"],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_config(vocab_size: int, **overrides) -> Qwen2Config:
    settings = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.4,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    return Qwen2Config(vocab_size=vocab_size, **settings | overrides)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def own_tokenizer() -> PreTrainedTokenizerFast:
    """One that a test may change."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_config(tokenizer):
    """A function that makes the config of a tiny model; keyword arguments change it."""
    return lambda **overrides: tiny_config(len(tokenizer), **overrides)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory, tokenizer) -> Path:
    """Writes noise; greedy decoding of it depends on every byte of the prompt."""
    folder = tmp_path_factory.mktemp("random")
    torch.manual_seed(7)
    Qwen2ForCausalLM(tiny_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_script(folder: Path, tokenizer: PreTrainedTokenizerFast, script: str, *, end: bool = True) -> Path:
    """Save a model that answers with ``script`` whatever it is asked, wherever in it the prompt stops.

    The attention and the MLPs write nothing, so the next token depends on the last one alone: the output
    matrix maps each token of the script to the next. The tokens must be distinct. The script starts after
    the template's last token (a newline).
    """
    ids = tokenizer(script, add_special_tokens=False).input_ids
    chain = [tokenizer("\n", add_special_tokens=False).input_ids[0], *ids]
    chain += [tokenizer.eos_token_id] if end else [chain[0]]
    assert len(set(chain[:-1])) == len(chain) - 1, "a token occurs twice in the script"
    size = len(tokenizer)
    model = Qwen2ForCausalLM(
        tiny_config(size, hidden_size=size + size % 2, num_attention_heads=2, num_hidden_layers=1)
    )
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, model.config.hidden_size))
        model.lm_head.weight.zero_()
        for now, then in itertools.pairwise(chain):
            model.lm_head.weight[then, now] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def script_model(tmp_path_factory, tokenizer):
    """A function that makes a folder with a model that recites a script."""
    made: dict[tuple[str, bool], Path] = {}

    def make(script: str, *, end: bool = True) -> Path:
        if (script, end) not in made:
            made[script, end] = save_script(tmp_path_factory.mktemp("script"), tokenizer, script, end=end)
        return made[script, end]

    return make


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory, tokenizer) -> Path:
    """A PRM with random weights, saved in two shards."""
    from trim_graph.adapters.prm.heads import Qwen2ForProcessRewardModel

    folder = tmp_path_factory.mktemp("prm")
    torch.manual_seed(3)
    model = Qwen2ForProcessRewardModel(tiny_config(len(tokenizer)))
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    return folder
