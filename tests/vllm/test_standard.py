"""LangChain's own integration tests of chat models, on a real server."""

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from trim_graph.adapters import ChatVLLM


class TestStandard(ChatModelIntegrationTests):
    url = "http://127.0.0.1:1"  # the property below has no fixtures

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVLLM

    @property
    def chat_model_params(self) -> dict:
        return {"model": "small", "base_url": self.url, "max_tokens": 100}

    @property
    def supports_model_override(self) -> bool:
        return False

    @pytest.fixture(autouse=True)
    def _server(self, servers) -> None:
        type(self).url = servers["small"].url
