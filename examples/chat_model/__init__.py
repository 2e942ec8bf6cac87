"""The router as a chat model in a chain that looks something up first."""

from __future__ import annotations

from .chain import build_chain, example_model
from .worksheets import WORKSHEETS, WordRetriever

__all__ = ["WORKSHEETS", "WordRetriever", "build_chain", "example_model"]
