"""One self-contained HTML page of an evaluation, and its plots; another of the records of a shadow.

It needs ``pip install "trim-graph[eval]"``.
"""

from .page import write_report
from .shadow import write_shadow_report

__all__ = ["write_report", "write_shadow_report"]
