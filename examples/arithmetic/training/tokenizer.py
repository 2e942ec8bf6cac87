"""The tokenizer of the example models: words, set phrases and single digits, bytes for everything else.

A byte-level BPE (as GPT-2 and Qwen2 use), so that any text round-trips. Its pre-tokenizer cuts digits one by
one, so that numbers are spelled the same way everywhere. The set phrases of the world are tokens, too:
a conversation is half as many tokens, and training on a CPU half as long.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.conversation import DEFAULT_INSTRUCTION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS, VOCABULARY = 832, 960
END_OF_TEXT, TURN_START, TURN_END, STEP = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"
STEP_END = ".ĊĊ"
"""Name of the token that ends a step: a full stop and a blank line, in the alphabet of byte-level BPE."""
PRM_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
"""System prompt of Qwen2.5-Math-PRM (its model card); the shipped reward model is trained with it too."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML: every turn is kept, no content is trimmed, no system prompt is made up."""

_PIECES = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|[\r\n]+|\s+(?!\S)|\s+"


def set_phrases() -> list[str]:
    """Returns the texts that are one token each: step numbers, the prompts, fixed parts of the problems."""
    from trim_graph.examples.arithmetic.chains import SET_PHRASES
    from trim_graph.examples.arithmetic.words import fixed_leads

    from .foreign import REPLY

    numbers = [f"{space}Step {number}:" for number in range(1, 13) for space in ("", " ")]
    prompts = [DEFAULT_INSTRUCTION, PRM_SYSTEM, REPLY, "The answer is \\boxed{"]
    return [*numbers, *prompts, *sorted(SET_PHRASES), *sorted(fixed_leads())]


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on problems of the training part and on the prompts; same seed, same result."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, STEP],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in set_phrases()])
    assert tokenizer.get_vocab_size() <= VOCABULARY
    fast: Any = PreTrainedTokenizerFast
    built: PreTrainedTokenizerFast = fast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, STEP],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    return built


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the tokenizer's files so that ``AutoTokenizer`` takes tokenizer.json as it is.

    For a Qwen2 model transformers 5 would replace the pre-tokenizer by Qwen's and add a normaliser that
    changes bytes; a mapping to nothing makes it, and vLLM with it, keep what the file says.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": [None, None]}}
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer exactly as tokenizer.json describes it."""
    from transformers import PreTrainedTokenizerFast

    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def _corpus(seed: int) -> Iterator[str]:
    from trim_graph.examples.arithmetic import draw_problem

    from .foreign import draw_foreign

    phrases = set_phrases()
    rng = random.Random(f"{seed}:tokenizer")
    for _ in range(300):
        yield draw_foreign(rng)
    for split, n in (("standard", 1500), ("hard", 500), ("words", 4000)):
        for _ in range(n):
            problem = draw_problem(rng, split, "train")  # type: ignore[arg-type]
            text = problem.question + "\n" + problem.solution
            for phrase in phrases:
                text = text.replace(phrase, " ~")
            yield text
