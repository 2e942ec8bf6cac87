"""The instruction both models get by default."""

from __future__ import annotations

DEFAULT_INSTRUCTION = (
    "Solve the problem step by step. Separate the steps with blank lines. "
    "Put the final answer into \\boxed{}."
)
"""Asks for the two things the graph relies on: steps separated by the delimiter, and a boxed answer."""
