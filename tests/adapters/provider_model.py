"""A chat model that keeps LangChain's contract and no more: it answers as it likes and continues nothing."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult


class ProviderModel(BaseChatModel):
    """Answers from a list of texts or messages, the last one for ever."""

    answers: list[Any]
    calls: list[dict[str, Any]]
    logprobs: bool | None = None

    def __init__(self, *answers: Any, **settings: Any) -> None:
        super().__init__(answers=list(answers) or ["Step."], calls=[], **settings)

    @property
    def _llm_type(self):
        return "provider_model"

    @property
    def _identifying_params(self):
        return {"answers": [str(answer) for answer in self.answers]}

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.calls.append({"messages": messages, "stop": stop, **kwargs})
        answer = self.answers[min(len(self.calls), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        message = said(answer) if isinstance(answer, str) else answer
        return ChatResult(generations=[ChatGeneration(message=message)])


def said(text, read=20, written=7, **metadata):
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    metadata = {"model_name": "far-away", "finish_reason": "stop", **metadata}
    return AIMessage(text, usage_metadata=usage, response_metadata=metadata)
