"""LangChain's own tests of chat models, for the router as one; the models inside are scripted."""

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from trim_graph import TrimChatModel


class _Suite:
    @pytest.fixture(autouse=True)
    def _graph(self, make):
        type(self).graph = make().graph

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return TrimChatModel

    @property
    def chat_model_params(self) -> dict:
        return {"graph": self.graph}

    @property
    def standard_chat_model_params(self) -> dict:
        return {}  # temperature and its like are set on the two models

    @property
    def has_tool_calling(self) -> bool:
        return False  # bind_tools is there to say so

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False


class TestUnit(_Suite, ChatModelUnitTests):
    @pytest.fixture
    def model(self, make):
        return TrimChatModel(graph=make().graph)


class TestIntegration(_Suite, ChatModelIntegrationTests):
    pass
