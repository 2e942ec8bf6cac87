"""A rollout tree as a JSON-native record, so that a file may keep whole trees, one a line."""

from __future__ import annotations

from typing import Any

from trim_graph.errors import InputError
from trim_graph.evaluation import Question

from .rollout_tree import Node, Tree, Written


def to_record(tree: Tree) -> dict[str, Any]:
    """Return the question's text and every place; places name those behind them by their number.

    Args:
        tree: As far as it is known.
    """
    numbers = {node: number for number, node in enumerate(tree.nodes.values())}
    return {"question": tree.question.text, "places": [_place(node, numbers) for node in numbers]}


def _place(node: Node, numbers: dict[Node, int]) -> dict[str, Any]:
    known: dict[str, Any] = {"step": node.steps[-1] if node.steps else None, "score": node.score}
    if node.ended:
        return {**known, "correct": node.correct}
    for name, written, behind in (
        ("draft", node.draft, node.accepted),
        ("large", node.large, node.regenerated),
    ):
        if written is not None and behind is not None:
            known[name] = {"to": numbers[behind], "tokens": written.tokens}
            told = {"probability": written.probability, "ends": written.ends}
            known[name] |= {key: value for key, value in told.items() if value is not None}
    return {**known, "draft_score": node.draft_score, "entropy": node.entropy}


def from_record(question: Question, record: dict[str, Any]) -> Tree:
    """Make the tree of a question again.

    Raises:
        InputError: The record is of another question, or is none.
    """
    if record.get("question") != question.text:
        raise InputError(
            f"a recorded tree is of the question {str(record.get('question'))[:80]!r}; expected "
            f"{question.text[:80]!r}"
        )
    tree = Tree(question)
    try:
        places, reached = record["places"], {0: tree.root}
        for number, place in enumerate(places):
            _restore(tree, reached[number], place, places, reached)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"the recorded tree of {question.text[:80]!r} is damaged: {error!r}") from error
    return tree


def _restore(
    tree: Tree, node: Node, place: dict[str, Any], places: list[dict[str, Any]], reached: dict[int, Node]
) -> None:
    node.score = place["score"]
    if "correct" in place:
        node.ended, node.correct = True, place["correct"]
        return
    if "draft" in place:
        node.ended = False
    node.draft_score, node.entropy = place["draft_score"], place["entropy"]
    for name in ("draft", "large"):
        if name not in place:
            continue
        to = place[name]["to"]
        text = places[to]["step"]
        reached[to] = tree.place((*node.steps, text))
        kept = place[name]
        written = Written(text, kept["tokens"], kept.get("probability"), kept.get("ends"))
        if name == "draft":
            node.draft, node.accepted = written, reached[to]
        else:
            node.large, node.regenerated = written, reached[to]
