"""Measures the example models: greedy accuracy of the solvers, AUC of the process reward model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trim_graph.conversation import DEFAULT_INSTRUCTION
from trim_graph.examples.arithmetic.problems import DELIMITER, Problem, is_right, kind_of_step, label_steps

from .corpus import chat_prompt, judged_prompt
from .tokenizer import END_OF_TEXT, PRM_SYSTEM, STEP

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def write_solutions(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    temperature: float = 0.0,
    rows: int = 250,
) -> list[str]:
    """Lets ``model`` write whole solutions, ``rows`` at a time (shortest questions first)."""
    import torch

    prompts = [chat_prompt([("system", DEFAULT_INSTRUCTION), ("user", p.question)]) for p in problems]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    solutions = [""] * len(prompts)
    tokenizer.padding_side = "left"
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        batch = tokenizer([prompts[i] for i in chunk], return_tensors="pt", padding=True).to(model.device)
        longest = max(len(problems[i].operations) for i in chunk)
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0}
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=40 + 24 * longest,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **(sampling if temperature else {"do_sample": False}),
            )
        texts = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(chunk, texts, strict=True):
            solutions[i] = text
    return solutions


def solver_metrics(problems: Sequence[Problem], solutions: Sequence[str]) -> dict[str, float]:
    """Returns the share of right answers and, up to the first wrong step, the share of right steps."""
    right = sum(is_right(p, s) for p, s in zip(problems, solutions, strict=True))
    good = seen = 0
    for problem, solution in zip(problems, solutions, strict=True):
        for label in label_steps(problem, solution.split(DELIMITER)):
            seen += 1
            good += label
            if not label:
                break
    return {"accuracy": right / len(problems), "step_accuracy": good / seen, "n": len(problems)}


def judge_solutions(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    solutions: Sequence[str],
    rows: int = 250,
) -> list[list[float]]:
    """Returns the reward model's probability of "right" for every step of every solution."""
    import torch

    texts = [
        judged_prompt(PRM_SYSTEM, p.question, s.split(DELIMITER))
        for p, s in zip(problems, solutions, strict=True)
    ]
    vocabulary = tokenizer.get_vocab()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    scores: list[list[float]] = [[] for _ in texts]
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        encoded = [tokenizer(texts[i]).input_ids for i in chunk]
        width = max(map(len, encoded))
        ids = torch.tensor([e + [vocabulary[END_OF_TEXT]] * (width - len(e)) for e in encoded]).to(
            model.device
        )
        with torch.inference_mode():
            logits = model(input_ids=ids)
        right = logits.float().softmax(-1)[..., 1]
        for row, i in enumerate(chunk):
            scores[i] = right[row][ids[row] == vocabulary[STEP]].tolist()
    return scores


def judge_metrics(
    problems: Sequence[Problem], solutions: Sequence[str], scores: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Returns AUC for spotting a wrong step: over all steps, within each kind of operation, and pooled.

    The pooled AUC counts only pairs of a right and a wrong step of the same kind: what a judge knows
    beyond "this kind of operation is hard".
    """
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    by_kind: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for problem, solution, row in zip(problems, solutions, scores, strict=True):
        labels = label_steps(problem, solution.split(DELIMITER))
        for index, (label, score) in enumerate(zip(labels, row, strict=True)):
            by_kind[kind_of_step(problem, index)].append((label, score))
    every = [pair for pairs in by_kind.values() for pair in pairs]
    per_kind: dict[str, float] = {}
    weighted = weights = 0.0
    for kind, pairs in sorted(by_kind.items()):
        wrong = sum(not label for label, _ in pairs)
        if 0 < wrong < len(pairs):
            per_kind[kind] = float(
                roc_auc_score([label for label, _ in pairs], [score for _, score in pairs])
            )
            weight = wrong * (len(pairs) - wrong)
            weighted, weights = weighted + weight * per_kind[kind], weights + weight
    return {
        "auc": float(roc_auc_score([label for label, _ in every], [score for _, score in every])),
        "auc_within_kind": weighted / weights,
        "auc_by_kind": per_kind,
        "wrong_share": sum(not label for label, _ in every) / len(every),
        "steps": len(every),
    }
