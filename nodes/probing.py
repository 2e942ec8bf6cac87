"""A probe: one token of the small model, asked for its entropy only."""

from __future__ import annotations

from typing import Any

from trim_graph.adapters.entropy import TOP_LOGPROBS
from trim_graph.adapters.inner_model import capable
from trim_graph.adapters.replies import read_entropy
from trim_graph.events import emit
from trim_graph.state import Order, Probe


def entropy_arguments(model: Any) -> dict[str, Any]:
    """Return the call settings that make a model tell the entropy of its first token.

    Args:
        model: A model that does not know the setting of our adapters is asked for the likeliest tokens, as
            OpenAI's API has it.
    """
    if capable(model, "tells_entropy"):
        return {"first_token_entropy": True}
    return {"logprobs": True, "top_logprobs": TOP_LOGPROBS}


def probed(order: Order, message: Any, *, index: int) -> Order:
    """Note in the order what the probe has told.

    Args:
        order: Of the probe.
        message: What the model returned.
        index: Of the step.

    Raises:
        ChatModelContractError: The model does not tell the entropy.
    """
    told = read_entropy(message, order["writer"])
    if told is None:  # cut by a time limit before the first token
        return Order(**{**order, "attempt": order["attempt"] + 1})
    emit("probe", step=index, entropy=told.nats, untold=told.untold)
    return Order(**{**order, "attempt": 0, "probe": Probe(entropy=told.nats, untold=told.untold)})
