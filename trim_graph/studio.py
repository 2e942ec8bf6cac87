"""The graph that ``langgraph.json`` serves, for LangGraph Studio: ``langgraph dev`` in the repository.

It runs on the example models, or on those of the configuration file that the environment variable
``TRIM_CONFIG`` names. Weights are loaded by the first run. The server brings its own checkpointer, so the
file's is not used.
"""

from __future__ import annotations

import os

from trim_graph.config import build_graph, example_config, load_config

_file = os.environ.get("TRIM_CONFIG")
graph = build_graph(load_config(_file) if _file else example_config())
