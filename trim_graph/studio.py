"""The graph that ``langgraph.json`` serves, for LangGraph Studio: ``langgraph dev`` in the repository.

It uses the example models, or those of the configuration file that the environment variable ``TRIM_CONFIG``
names. The first run loads their weights. The server has its own checkpointer and ignores the file's.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from trim_graph.budget.ledger import open_ledger
from trim_graph.config import build_graph, example_config, load_config

_file = os.environ.get("TRIM_CONFIG")
_config = load_config(_file) if _file else example_config()
_stays_open = ExitStack()
_ledger = _stays_open.enter_context(open_ledger(_config.ledger)) if _config.ledger else None
# It shows how a run is routed, so without a shadow, which is of an application.
graph = build_graph(_config.model_copy(update={"shadow": None}), ledger=_ledger)
