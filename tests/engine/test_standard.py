"""LangChain's own integration tests of chat models, on a real engine."""

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from trim_graph.adapters import ChatVLLMEngine
from trim_graph.examples.arithmetic import SMALL

from .conftest import ENGINE


class TestStandard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVLLMEngine

    @property
    def chat_model_params(self) -> dict:
        return {"model": str(SMALL), "max_tokens": 100, **ENGINE}

    @property
    def standard_chat_model_params(self) -> dict:
        """Without those of a server: a key, retries."""
        return {"temperature": 0, "timeout": 60, "stop": []}

    @property
    def supports_model_override(self) -> bool:
        return False

    @pytest.fixture(autouse=True)
    def _engine(self, small) -> None:
        """Keeps the engine from ending after each test."""
