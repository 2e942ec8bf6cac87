"""A process reward model (PRM) behind a vLLM server as scorer."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from trim_graph.adapters.base import ScorableStep, ScorerReply, step_texts
from trim_graph.adapters.event_loop import AsyncLazy, run_sync
from trim_graph.adapters.model_source import check_model, load_tokenizer
from trim_graph.adapters.prm.formats import STEP_TOKENS, PRMFormat, PRMInput
from trim_graph.adapters.prm.scorer_file import FormatChoice, StackedReward, chosen_format
from trim_graph.adapters.prm.scores import read_pooled, serve_options
from trim_graph.adapters.settings import PRMSettings, ServedPRMSettings, VLLMServerPRMSettings
from trim_graph.errors import FailedAttempts, ModelServerError, ScorerError

from .batching import ScoreBatcher
from .client import VLLMServer
from .replicas import Replicas
from .step_scores import PendingSteps, StepScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "Step 1: 12 + 34 = 46, so \\boxed{46}.\n\n"


@dataclass(frozen=True, slots=True)
class _Ready:
    """Facts about the served PRM."""

    format: PRMFormat
    choice: FormatChoice
    max_model_len: int | None
    served_with: str
    """Text on how the server has to be started."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A server's answer to one solution.

    Attributes:
        rows: Rows of the pooler.
        pending: Steps that the rows are of; None: the rows are of the whole input.
        tokens: Tokens that were sent.
    """

    rows: Any
    pending: PendingSteps | None
    tokens: int


class ServedReward(ServedPRMSettings):
    """A process reward model behind a vLLM server: its connections, and copies that connect anew."""

    _server: Replicas = PrivateAttr()

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

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        shown = ("model", "base_url", "format", "step_token", "max_batch_size")
        return ((name, getattr(self, name)) for name in shown)

    def __reduce__(self) -> Any:
        """Pickles the settings; the server is asked anew on the other side."""
        return partial(type(self), **self.model_dump()), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Returns a copy that asks the server anew."""
        return type(self)(**self.model_dump())


class VLLMProcessReward(StackedReward, ServedReward, VLLMServerPRMSettings):
    """Scores steps with a process reward model that a vLLM server serves.

    The server is started as ``vllm serve MODEL`` with what `trim_graph.adapters.prm.scores.serve_options`
    gives for the format. Its answers show how it pools:

    - LAST (``classify``): it scores an input at its end, and its prefix cache holds the tokens before.
      Scores that are known are kept here (``cache_size``), so a pass scores the newest step only, and takes
      as long for the hundredth step as for the first. Steps that were not scored yet, such as those of the
      large model, are further inputs of the same request.
    - STEP or ALL (``token_classify``): it scores all steps in one pass over the whole input. vLLM reads no
      prefix from its cache for that.

    The scores are the same. Token ids and positions are made here, so that special tokens in a text stay
    text; calls that wait are sent as one request. For the formats see `TransformersProcessReward`.

    Settings, by keyword but for ``model``: `trim_graph.adapters.settings.VLLMServerPRMSettings`.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    _ready: AsyncLazy[_Ready] = PrivateAttr()
    _requests: dict[str, ScoreBatcher[PRMInput, Any]] = PrivateAttr()
    _known: StepScores = PrivateAttr()
    _by_step: dict[str, bool] = PrivateAttr(default_factory=dict)
    """By replica, whether it pools LAST, once an answer has shown it."""

    def model_post_init(self, context: Any) -> None:
        """Connects the parts; nothing is sent."""
        super().model_post_init(context)
        self._ready = AsyncLazy(self._get_ready)
        self._requests = {
            root: ScoreBatcher(
                partial(self._send, server),
                max_batch=self.max_batch_size,
                max_requests=self.max_requests,
                inputs=partial(self._count_inputs, root),
            )
            for root, server in self._server.servers.items()
        }
        self._known = StepScores(self.cache_size)

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step.

        Args:
            question: Question that the steps answer.
            steps: All steps so far, in order.

        Returns:
            One probability in [0, 1] per step, and the number of tokens in the inputs that were sent. Tokens
            that the server takes from its cache are among them, since its answer does not report those.

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

        async def attempt(asked: PRMInput) -> _Answer:
            answer = await self._requests[route.root].ask(asked)
            if isinstance(answer, ModelServerError):
                raise answer
            assert isinstance(answer, _Answer)
            return answer

        try:
            ready = await self._ready.get()
            texts = step_texts(steps)
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
                input_tokens=0 if asked is None else route.begun * self._count_tokens(route.root, asked),
                output_tokens=0,
                unknown=0,
            )
            raise failed from error
        head = ready.format.head
        if answer.pending is not None:
            scores = self._known.settle(answer.pending, answer.rows, head, at=route.root)
        else:
            scores = read_pooled(answer.rows, asked, head, at=route.root, fix=ready.served_with)
        read = (1 + route.begun) * answer.tokens
        stacked = ready.choice.stacked(scores, steps)
        return ScorerReply(scores=stacked, input_tokens=read, failed_attempts=route.failures)

    @property
    def scores_by_step(self) -> bool | None:
        """Whether all replicas that have answered pool LAST; None before the first answer."""
        return all(self._by_step.values()) if self._by_step else None

    async def _get_ready(self) -> _Ready:
        served = await self._server.served(self.model)
        place = self.tokenizer or str(served.get("root") or self.model)
        choice, tokenizer = await asyncio.to_thread(load_format, self, place)
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
        return _Ready(made, choice, served.get("max_model_len"), start)

    async def _tokenized(self, text: str) -> list[int] | None:
        """Returns the server's tokens of a text; None where a proxy does not let the question through."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            return list((await self._server.post("/tokenize", body))["tokens"])
        except ModelServerError as error:
            if error.status in (404, 405):
                return None
            raise

    def _count_inputs(self, root: str, asked: PRMInput) -> int:
        return len(self._known.pending(asked).prefixes) if self._by_step.get(root) else 1

    def _count_tokens(self, root: str, asked: PRMInput) -> int:
        return self._known.pending(asked).tokens if self._by_step.get(root) else len(asked.ids)

    async def _send(self, server: VLLMServer, inputs: list[PRMInput]) -> list[_Answer | ModelServerError]:
        """Asks a replica once. The answer to an input may be an error, which is that input's own."""
        by_step = self._by_step.get(server.root, False)
        try:
            answers = await self._ask(server, inputs, by_step=by_step)
        except ModelServerError as error:
            if not _refuses_task(error):
                return await self._each_alone(server, inputs, error)
            # A server has one task, and its refusal alone shows which.
            by_step = not by_step
            try:
                answers = await self._ask(server, inputs, by_step=by_step)
            except ModelServerError as other:
                if _refuses_task(other):
                    raise error from None
                if other.status == 400:
                    self._by_step[server.root] = by_step
                return await self._each_alone(server, inputs, other)
        self._by_step[server.root] = by_step
        return answers

    async def _each_alone(
        self, server: VLLMServer, inputs: list[PRMInput], error: ModelServerError
    ) -> list[_Answer | ModelServerError]:
        """Asks for one solution at a time: a bad one must not cost the others their scores."""
        if error.status != 400 or len(inputs) == 1:
            raise error
        answers: list[_Answer | ModelServerError] = []
        for one in inputs:
            try:
                answers += await self._send(server, [one])
            except ModelServerError as refusal:
                answers.append(refusal)
        return answers

    async def _ask(
        self, server: VLLMServer, inputs: list[PRMInput], *, by_step: bool
    ) -> list[_Answer | ModelServerError]:
        if not by_step:
            rows = await self._pooled(server, "token_classify", [one.ids for one in inputs])
            return [_Answer(row, None, len(one.ids)) for row, one in zip(rows, inputs, strict=True)]
        pending = [self._known.pending(one) for one in inputs]
        rows = await self._pooled(server, "classify", [ids for one in pending for ids in one.prefixes])
        parts = iter(rows)
        return [_Answer([next(parts) for _ in one.prefixes], one, one.tokens) for one in pending]

    async def _pooled(self, server: VLLMServer, task: str, inputs: list[list[int]]) -> list[Any]:
        """Returns the pooler's answer to each input; None where the server has left one out."""
        if not inputs:
            return []
        body = {"model": self.model, "task": task, "use_activation": True, "input": inputs}
        answer = await server.post_once("/pooling", body)
        entries = answer.get("data")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ModelServerError(f"{server.root} answered /pooling with {str(answer)[:200]}", begun=True)
        found = {entry.get("index"): entry.get("data") for entry in entries}
        return [found.get(number) for number in range(len(inputs))]


_OF_TASK = re.compile(r"answered 400: .*\btasks?\b|pooling_task", re.DOTALL | re.IGNORECASE)


def _refuses_task(error: ModelServerError) -> bool:
    """Returns whether a server refuses a request because it serves another pooling task."""
    return error.status == 400 and _OF_TASK.search(str(error)) is not None


def load_format(settings: PRMSettings, place: str) -> tuple[FormatChoice, PreTrainedTokenizerBase]:
    """Returns the format of a served reward model and its tokenizer.

    Args:
        settings: Settings of the reward model.
        place: Folder or hub id of its tokenizer.

    Raises:
        ScorerError: The tokenizer cannot be loaded.
        ImportError: transformers is not installed, or jinja2 where the format has a chat template.
    """
    try:
        weights = check_model(place)
        choice = chosen_format(settings, weights)
        return choice, load_tokenizer(weights, chat=choice.needs_chat_template)
    except ImportError as error:
        raise ImportError(
            f'the tokenizer of a PRM needs transformers and jinja2: pip install "trim-graph[vllm]" ({error})'
        ) from error
    except (OSError, ValueError) as error:
        raise ScorerError(
            f"the PRM's tokenizer cannot be loaded from {place}: {error}. Unless the setting tokenizer "
            "names a folder or hub id, that is where the server has it from"
        ) from error
