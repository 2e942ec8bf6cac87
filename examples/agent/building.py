"""From models and tools to an agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent

from trim_graph.agents import TrimMiddleware
from trim_graph.config import TrimConfig, build_parts
from trim_graph.policies import threshold

from .scripted import models

INSTRUCTION = "Answer the question with the tools. Calculate with the calculator, never in your head."

_OF_TURNS = ("max_steps", "max_step_tokens", "seed", "on_scorer_error", "on_large_error", "on_small_error")


def build_agent(tools: Sequence[Any], config: TrimConfig | None = None, **options: Any) -> Any:
    """Builds the agent.

    Args:
        tools: It may call.
        config: Names the models, the scorer, the policy and the budget; None takes those of the script.
        **options: For ``create_agent``, such as a checkpointer.

    Raises:
        SettingsError: The configuration's parts do not go together.
    """
    if config is None:
        small, large, judge = models()
        routing = TrimMiddleware(large, judge, policy=threshold(7 / 9))
    else:
        small, large, scorer = build_parts(config)
        # What a configuration says of steps that are text has no meaning here.
        given = config.settings.model_dump(include=config.settings.model_fields_set & set(_OF_TURNS))
        routing = TrimMiddleware(
            large,
            scorer,
            policy=config.policy.build(),
            budget=config.budget,
            prices=config.prices,
            **given,
        )
    return create_agent(small, list(tools), middleware=[routing], system_prompt=INSTRUCTION, **options)
