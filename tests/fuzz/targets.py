"""What must hold for any text; each target is made once and called for every input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests import tiny_prms
from trim_graph.adapters.prm.formats import prm_format
from trim_graph.conversation import extract_answer
from trim_graph.segmentation import (
    DelimiterSteps,
    MarkdownSteps,
    PatternSteps,
    Segmentation,
    Thinking,
    WatchedSteps,
    is_step,
    join_steps,
    split_steps,
)

Check = Callable[[Sequence[str], Sequence[int]], None]
PIECES = [
    "\n",
    "\n\n",
    " ",
    "<think>",
    "</think>",
    "\\boxed{",
    "}",
    "---",
    "\n```\n",
    "\n~~~",
    "$$",
    "\\[",
    "\n# ",
    "\n| ",
    "Step 1:",
    "<extra_0>",
    " ки",
    "ки\n",
    "+",
    "-",
    "<s>",
    "</s>",
    "<|im_start|>assistant\n",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|endoftext|>",
    "▁",
    "\u200b",
    "\u202e",
    "\ud800",
    "\x00",
]
WAYS: list[Segmentation] = [
    DelimiterSteps(),
    DelimiterSteps(delimiter="##"),
    PatternSteps(pattern=r"\n"),
    PatternSteps(pattern=r"\n+(?=Step \d)"),
    MarkdownSteps(),
]


def spiced(texts: Sequence[str], choices: Sequence[int]) -> list[str]:
    """Puts what means something to a model or a parser among the letters."""
    return [
        texts[i]
        + PIECES[choices[2 * i] % len(PIECES)]
        + texts[i][::-1]
        + PIECES[choices[2 * i + 1] % len(PIECES)]
        for i in range(len(texts))
    ]


def steps() -> Check:
    """No way of splitting loses a word, makes a step of nothing, or fails."""

    def check(texts: Sequence[str], choices: Sequence[int]) -> None:
        text = "".join(spiced(texts, choices))
        for way in WAYS:
            found = way.split(text)
            assert all(is_step(step) for step, _ in found), (way, text)
            if isinstance(way, WatchedSteps):
                assert not found or "".join(step + separator for step, separator in found) == text, (
                    way,
                    text,
                )
        cut = split_steps(text)
        assert not cut or "".join("".join(cut).split()) == "".join(text.split()), text
        records = [{"text": step, "end": "delimiter"} for step in cut]
        joined = join_steps(records)
        assert all(step in joined for step in cut)
        answer = extract_answer(text)
        assert answer is None or answer in text
        thinking, previous = Thinking(), None
        for step in cut:
            part = thinking.part_of(previous, step)
            previous = {"text": step, "end": "delimiter", **({"part": part} if part else {})}

    return check


def prm() -> Check:
    """In every layout a score stands behind each step, and nowhere else, whatever the texts hold."""
    qwen = tiny_prms.load_tokenizer(str(tiny_prms.PRM))
    formats = {
        "qwen": prm_format("qwen", qwen),
        "math_shepherd": prm_format("math_shepherd", tiny_prms.mistral_tokenizer()),
        "skywork": prm_format("skywork", tiny_prms.skywork_tokenizer()),
        "rlhflow": prm_format("rlhflow", tiny_prms.llama_tokenizer()),
    }

    def check(texts: Sequence[str], choices: Sequence[int]) -> None:
        question, *solution = spiced(texts, choices)
        if not question.replace("▁", " ").strip():
            return  # refused by name
        for name, made in formats.items():
            whole = made.encode(question, solution)
            positions = whole.step_positions
            assert len(positions) == len(solution), name
            assert list(positions) == sorted(set(positions)), name
            first = made.encode(question, solution[:1])
            # A step changes nothing before it: its score's place and all tokens up to there stay.
            assert first.step_positions[0] == positions[0], name
            assert first.ids[: positions[0]] == whole.ids[: positions[0]], name

    return check


TARGETS: dict[str, Callable[[], Check]] = {"steps": steps, "prm": prm}
