"""The nodes of the graph, one file each. They do I/O through adapters and the ledger only."""

from .ask_human import ask_human_node
from .finalize import OnAnswer, finalize_node
from .generate_step import after_generate_step, generate_step_node
from .route import begin_route, route_node
from .score_step import score_step_node

__all__ = [
    "OnAnswer",
    "after_generate_step",
    "ask_human_node",
    "begin_route",
    "finalize_node",
    "generate_step_node",
    "route_node",
    "score_step_node",
]
