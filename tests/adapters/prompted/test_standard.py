"""LangChain's own unit tests of chat models."""

from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.adapters.provider_model import ProviderModel
from trim_graph.adapters import ContinueByPrompt


class TestStandard(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ContinueByPrompt

    @property
    def chat_model_params(self) -> dict:
        return {"model": ProviderModel("Step.")}
