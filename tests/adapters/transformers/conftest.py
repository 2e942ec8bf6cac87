"""Models of this process with tiny weights: one recites, one never ends, one writes noise."""

import pytest
from langchain_core.messages import HumanMessage

from trim_graph.adapters import ChatTransformers

SCRIPT = "First, add 3 and 4.\n\nThen"
QUESTION = [HumanMessage("What is it?")]


@pytest.fixture
def reciter(script_model):
    return ChatTransformers(model=str(script_model(SCRIPT)))


@pytest.fixture
def endless(script_model):
    """Writes `` 3 4\n`` for ever."""
    return ChatTransformers(model=str(script_model(" 3 4", end=False)))


@pytest.fixture
def noisy(random_model):
    return ChatTransformers(model=str(random_model), max_tokens=24)
