"""One self-contained HTML page of an evaluation, and its plots.

It needs ``pip install "trim-graph[eval]"``.
"""

from .page import write_report

__all__ = ["write_report"]
