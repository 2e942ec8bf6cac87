"""Graphs to record rollouts with, from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langgraph.graph.state import CompiledStateGraph

from trim_graph.config import Parts, TrimConfig
from trim_graph.evaluation.remembering import RememberingScorer
from trim_graph.policies import Policy


def graph_builder(
    config: TrimConfig, parts: Parts
) -> Callable[[Policy], CompiledStateGraph[Any, Any, Any, Any]]:
    """Return what makes the graph of a policy.

    Its models and scorer remember their answers, since rollouts of a question have most of their steps in
    common. It has no budget, whatever the configuration says: a limit would change decisions.

    Args:
        config: For the settings.
        parts: The models and the scorer.
    """
    from langchain_core.caches import InMemoryCache

    from trim_graph.graph import create_trim_graph

    for model in (parts.small, parts.large):
        if getattr(model, "cache", False) is None:
            model.cache = InMemoryCache()
    scorer = RememberingScorer(parts.scorer)

    def build(policy: Policy) -> CompiledStateGraph[Any, Any, Any, Any]:
        settings = config.settings.model_dump()
        return create_trim_graph(parts.small, parts.large, scorer, policy=policy, **settings)

    return build
