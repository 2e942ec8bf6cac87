"""A process reward model (PRM) behind a vLLM server as scorer."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from trim_graph.adapters.base import ScorableStep, ScorerReply
from trim_graph.adapters.event_loop import AsyncLazy, run_sync
from trim_graph.adapters.model_source import check_model, load_tokenizer
from trim_graph.adapters.prm.formats import STEP_TOKENS, PRMFormat, PRMInput
from trim_graph.adapters.prm.scorer_file import FormatChoice, chosen_format
from trim_graph.adapters.prm.scores import read_pooled, serve_options
from trim_graph.adapters.settings import PRMSettings, VLLMServerPRMSettings
from trim_graph.errors import FailedAttempts, ModelServerError, ScorerError

from .batching import ScoreBatcher
from .client import VLLMServer
from .replicas import Replicas

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "Step 1: 12 + 34 = 46, so \\boxed{46}.\n\n"


@dataclass(frozen=True, slots=True)
class _Ready:
    """Facts about the served PRM."""

    format: PRMFormat
    max_model_len: int | None
    served_with: str
    """Text on how the server has to be started."""


class VLLMProcessReward(VLLMServerPRMSettings):
    """Scores steps with a process reward model that a vLLM server serves.

    The server is started as ``vllm serve MODEL`` with what `trim_graph.adapters.prm.scores.serve_options`
    gives for the format; a server with the pooling type ALL instead of STEP is understood too. Token ids and
    positions are made here, so that special tokens in a text stay text; calls that wait are sent as one
    request. For the formats see `TransformersProcessReward`.

    Settings, by keyword but for ``model``: `trim_graph.adapters.settings.VLLMServerPRMSettings`.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    _server: Replicas = PrivateAttr()
    _ready: AsyncLazy[_Ready] = PrivateAttr()
    _requests: dict[str, ScoreBatcher[PRMInput, Any]] = PrivateAttr()

    if not TYPE_CHECKING:

        def __init__(self, model: str, **settings: Any) -> None:
            super().__init__(model=model, **settings)

    def model_post_init(self, context: Any) -> None:
        """Connects the parts; nothing is sent."""
        self._server = Replicas.at(
            self.base_url,
            api_key_env=self.api_key_env,
            read_timeout=self.read_timeout,
            max_retries=self.max_retries,
        )
        self._ready = AsyncLazy(self._get_ready)
        self._requests = {
            root: ScoreBatcher(
                partial(self._send, server), max_batch=self.max_batch_size, max_requests=self.max_requests
            )
            for root, server in self._server.servers.items()
        }

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        shown = ("model", "base_url", "format", "step_token", "max_batch_size")
        return ((name, getattr(self, name)) for name in shown)

    def __reduce__(self) -> Any:
        """Pickles the settings; the server is asked anew on the other side."""
        return partial(type(self), **self.model_dump()), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy asks the server anew."""
        return type(self)(**self.model_dump())

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step.

        Args:
            question: Question that the steps answer.
            steps: All steps so far, in order.

        Returns:
            One probability in [0, 1] per step, and the number of tokens read.

        Raises:
            ScorerError: No steps, an empty question, an input longer than the PRM takes, a server that
                is not there or refuses, or one that does not give one probability per step.
        """
        return run_sync(self.ascore(question, steps))

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step without blocking the event loop; see `score`."""
        ready: _Ready | None = None
        asked: PRMInput | None = None
        route = self._server.route(question)

        async def attempt(asked: PRMInput) -> Any:
            answer = await self._requests[route.root].ask(asked)
            if isinstance(answer, ModelServerError):
                raise answer
            return answer

        try:
            ready = await self._ready.get()
            texts = [step["text"] for step in steps]
            asked = await asyncio.to_thread(
                ready.format.encode, question, texts, max_tokens=ready.max_model_len
            )
            answer = await route.retrying(partial(attempt, asked))
        except ModelServerError as error:
            said = f"the PRM {self.model} gave no scores: {error}"
            if ready is not None and error.status in (400, 404, 501):
                said += f". If it is no PRM in the format {self.format}, {ready.served_with}"
            failed = ScorerError(said)
            failed.attempts = FailedAttempts(
                count=max(route.failures, 1),
                input_tokens=0 if asked is None else route.begun * len(asked.ids),
                output_tokens=0,
                unknown=0,
            )
            raise failed from error
        scores = read_pooled(answer, asked, ready.format.head, at=route.root, hint=ready.served_with)
        read = (1 + route.begun) * len(asked.ids)
        return ScorerReply(scores=scores, input_tokens=read, failed_attempts=route.failures)

    async def _get_ready(self) -> _Ready:
        served = await self._server.served(self.model)
        place = self.tokenizer or str(served.get("root") or self.model)
        choice, tokenizer = await asyncio.to_thread(_load_format, self, place)
        made = choice.layout(tokenizer)
        options = serve_options(choice.name, tokenizer=tokenizer, step_token=choice.step_token)
        text = (choice.step_token or STEP_TOKENS.get(choice.name, "")) + _SAMPLE
        ours = tokenizer.encode(text, add_special_tokens=False)
        if (theirs := await self._tokenized(text)) not in (None, ours):
            raise ScorerError(
                f"tokenizer={place!r} is not the one of the PRM at {self._server.root}: it makes {ours} of "
                f"{text!r}, the server {theirs}; name the PRM's own"
            )
        start = f"start the server with {shlex.join(options)}"
        return _Ready(made, served.get("max_model_len"), start)

    async def _tokenized(self, text: str) -> list[int] | None:
        """Returns the server's tokens of a text; None where a proxy does not let the question through."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            return list((await self._server.post("/tokenize", body))["tokens"])
        except ModelServerError as error:
            if error.status in (404, 405):
                return None
            raise

    async def _send(self, server: VLLMServer, inputs: list[PRMInput]) -> list[Any]:
        """Asks a replica once. The answer to an input may be an error, which is that input's own."""
        body = {
            "model": self.model,
            "task": "token_classify",
            "use_activation": True,
            "input": [one.ids for one in inputs],
        }
        try:
            answer = await server.post_once("/pooling", body)
        except ModelServerError as error:
            if error.status != 400 or len(inputs) == 1:
                raise
            # One bad input must not cost the others their scores.
            return [await self._alone(server, one) for one in inputs]
        entries = answer.get("data")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ModelServerError(f"{server.root} answered /pooling with {str(answer)[:200]}", begun=True)
        found = {entry.get("index"): entry.get("data") for entry in entries}
        return [found.get(number) for number in range(len(inputs))]

    async def _alone(self, server: VLLMServer, one: PRMInput) -> Any:
        try:
            return (await self._send(server, [one]))[0]
        except ModelServerError as error:
            return error


def _load_format(settings: PRMSettings, place: str) -> tuple[FormatChoice, PreTrainedTokenizerBase]:
    try:
        weights = check_model(place)
        choice = chosen_format(settings, weights)
        return choice, load_tokenizer(weights, chat=choice.needs_chat_template)
    except ImportError as error:
        raise ImportError(
            f'the tokenizer of a PRM needs transformers: pip install "trim-graph[vllm]" ({error})'
        ) from error
    except (OSError, ValueError) as error:
        raise ScorerError(
            f"the PRM's tokenizer cannot be loaded from {place}: {error}. Unless the setting tokenizer "
            "names a folder or hub id, that is where the server has it from"
        ) from error
