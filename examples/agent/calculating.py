"""Arithmetic from a text, by its syntax tree: nothing in it is executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

LONGEST = 200
"""Characters of an expression."""
LARGEST = 4096
"""Bits of a whole number, so that ``9**9**9`` does not take the machine."""

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def evaluate(expression: str) -> int | float:
    """Computes an expression of numbers, brackets and ``+ - * / // % **``.

    Args:
        expression: As in Python; at most 200 characters.

    Raises:
        ValueError: It holds anything else, cannot be worked out, or becomes too large.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters; at most {LONGEST} are read")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r} cannot be worked out: {error}") from error


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _checked(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _checked(_UNARY[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
            _require_small(left.bit_length() * abs(right))
        return _checked(_BINARY[type(node.op)](left, right))
    raise ValueError(f"{ast.unparse(node)!r} is no number, and none of + - * / // % ** of numbers")


def _checked(value: Any) -> int | float:
    if isinstance(value, complex):
        raise ValueError("a root of a negative number is no real number")
    if isinstance(value, int):
        _require_small(value.bit_length())
    number: int | float = value
    return number


def _require_small(bits: int) -> None:
    if bits > LARGEST:
        raise ValueError(f"a number would have {bits} bits; at most {LARGEST} are worked with")
