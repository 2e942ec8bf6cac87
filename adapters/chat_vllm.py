"""A chat model behind a vLLM server that continues a trailing AIMessage exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from langchain_core.messages import BaseMessage
from pydantic import Field, PrivateAttr, SecretStr

from .background import run_sync
from .chat_vllm_base import VLLMChatModel
from .prompts_together import PromptsTogether
from .replicas import Replicas, check_base_urls, conversation_key
from .settings import VLLMServerSettings
from .vllm_call import VLLMCall
from .vllm_prompt import VLLMPrompts
from .vllm_server import VLLMServer
from .vllm_wire import CallSettings


class ChatVLLM(VLLMServerSettings, VLLMChatModel):
    r"""A model that a vLLM server serves (``vllm serve MODEL --enable-prompt-tokens-details``).

    An SGLang server or llama.cpp's ``llama-server`` will do too: the first call reads from the server's list
    of models which one it is (see `server_dialects`).

    A conversation that ends in an AIMessage is continued right after the bytes of that message. Where the
    model's chat template would change them (it trims, or adds a thinking block), the template is rendered
    once and the text appended to it; that is found out at the first call. A template without a role for
    system messages gets them in front of the human message that follows; one that wants roles to alternate
    gets messages of one role in a row as one. An earlier turn's reasoning is left out.

    Special tokens in the conversation stay text: where one of their usual shapes (``<...>``, ``[...]``,
    ``|...|``) turns up, the server is asked whether it is one, once for each, and the conversation is sent
    as token ids over ``/v1/completions``. A text that cannot be looked at (no ``/tokenize``) or written as
    plain text is refused.

    The answer's ``response_metadata`` holds ``model_name``, ``finish_reason`` as the server names it
    (``"stop"``, ``"length"``; see `stop_reasons`), ``stop_reason`` (the stop string met, or None at the end
    of sequence), ``timed_out=True`` where a
    ``timeout`` cut it, ``prompt_opens_thought=True`` where the chat template opens one, with
    ``logprobs=True`` ``mean_token_probability`` as in `ChatTransformers`, with ``top_logprobs`` the raw
    ``logprobs``, with ``first_token_entropy=True`` a lower bound of the first token's entropy in nats and the
    ``untold_probability`` of the tokens it does not rest on (see `entropy_logprobs`), and
    ``failed_attempts`` where some were, with the tokens known of them. ``usage_metadata`` counts those too,
    and prompt tokens served from the cache where the server reports them. Of an answer whose tokens the
    server does not report it holds ``max_tokens`` and an upper bound of the prompt, and
    ``response_metadata["usage_upper_bound"]`` is True.

    Every call takes ``stop`` and, by keyword, ``max_tokens``, ``temperature``, ``top_p``, ``seed``,
    ``logprobs``, ``top_logprobs``, ``first_token_entropy``, ``timeout``, ``stop_when`` (a function of the
    text so far that ends the answer; its ``stop_reason`` is ``"stop_when"``) and ``retry_tokens`` (a function
    of what failed attempts have used that limits the next one; see `RetryTokens`). Of the model's
    generation_config only the ends of sequence count. Cancelling a call, or leaving a stream, ends the
    request on the server.

    Raises:
        ContextLengthError: The conversation fills the model's context; by a call.
        ModelServerError: The server is not there, refuses, failed ``max_retries`` times more, or gave an
            answer that cannot be used: ended by a filter, or with numbers that cannot be true; by a call.
        ChatModelContractError: The server does not report which stop string it met; by a call.
        TimeoutError: Nothing arrived within ``timeout``; by a call.

    Example:
        ```python
        model = ChatVLLM(model="Qwen/Qwen2.5-7B-Instruct", base_url="http://localhost:8000/v1")
        step = model.invoke([("human", "What is 12 * 12?"), ("ai", "First step.\n\n")], stop=["\n\n"])
        ```
    """

    takes_retry_tokens: ClassVar[bool] = True

    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """A key given in code instead. It is neither shown nor saved: a pickled model goes without."""

    _shown: ClassVar[tuple[str, ...]] = ("base_url", "continuation", "extra_body")
    _server: Replicas = PrivateAttr()
    _prompts: VLLMPrompts = PrivateAttr()
    _together: dict[str, PromptsTogether] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Connect the parts; nothing is sent."""
        self._server = Replicas(
            [
                VLLMServer(
                    root=root,
                    api_key_env=self.api_key_env,
                    api_key=self.api_key,
                    read_timeout=self.read_timeout,
                    max_retries=self.max_retries,
                    max_connections=self.max_connections,
                )
                for root in check_base_urls(self.base_url)
            ]
        )
        together = self.max_batch_size > 1
        if together and self.continuation == "chat":
            raise ValueError(
                f"max_batch_size={self.max_batch_size} sends many prompts to /v1/completions, which "
                "continuation='chat' rules out: leave continuation at 'auto', or max_batch_size at 1"
            )
        if together and self.extra_body.get("n", 1) != 1:
            raise ValueError(
                f"extra_body asks for n={self.extra_body['n']} answers a prompt: leave it out where "
                "max_batch_size is above 1"
            )
        continuation = "raw" if together else self.continuation
        self._prompts = VLLMPrompts(self._server, self.model, continuation, dict(self.chat_template_kwargs))
        self._together = {
            root: PromptsTogether(server, max_batch=self.max_batch_size, patience=self.batch_patience)
            for root, server in self._server.servers.items()
            if together
        }

    def count_prompt_tokens(self, messages: Sequence[BaseMessage]) -> int:
        """Exact number of prompt tokens that a call with these messages reads. Asks the server.

        Raises:
            ValueError: The conversation is empty or holds something that is not text.
            ModelServerError: The server does not answer.
        """
        return run_sync(self._prompts.count(messages))

    @property
    def stop_reported_in(self) -> str:
        """The field in which the server has reported which stop string it met; empty until it has.

        ``stop_reason``: vLLM. ``matched_stop``: SGLang. ``stop_type``: llama.cpp.
        ``include_stop_str_in_output``: a vLLM behind a gateway that drops ``stop_reason``.
        """
        return self._prompts.stop_field

    def takes_system_role(self) -> bool:
        """Whether the chat template has a role for system messages; else they precede a human message.

        Asks the server.

        Raises:
            ModelServerError: The server does not answer.
        """
        return run_sync(self._prompts.takes_system_role())

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text, none added. Asks the server."""
        return run_sync(self._prompts.tokenize(text))

    @property
    def _llm_type(self) -> str:
        return "trim-graph-vllm"

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle the settings, without a key."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore the settings, and ask the server anew."""
        super().__setstate__({**state, "__pydantic_private__": {}})
        self.model_post_init(None)

    def _call(self, messages: list[BaseMessage], settings: CallSettings) -> VLLMCall:
        route = self._server.route(lambda: conversation_key(messages))
        return VLLMCall(route, self._prompts, messages, settings, self.extra_body, self._together)
