"""One worker thread per loaded model that runs waiting calls in batches, and the rows of a batch.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from trim_graph.adapters.base import STOPPED, CallSettings
from trim_graph.adapters.prm.formats import PRMInput
from trim_graph.adapters.token_confidence import lowest_window_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GRACE_S = 0.002
"""Seconds that a lone call waits for others when the worker is idle."""
PREPARING_S = 0.05
"""Most seconds that waiting calls wait for calls that are still being tokenised."""
IDLE_S = 5.0
"""Seconds after which an idle thread ends, so that it does not keep the weights alive."""

Reply = TypeVar("Reply")


@dataclass(eq=False, kw_only=True)
class Job(Generic[Reply]):
    """One call on its way through a `BatchWorker`.

    Attributes:
        batch_limit: Most jobs this one may share a batch with, itself included.
        future: Gets the reply or the error. Cancelling it takes the job out of the queue, or ends its
            row at the next token if it already runs.
    """

    batch_limit: int
    future: Future[Reply] = field(default_factory=Future)

    @property
    def wanted(self) -> bool:
        """Whether a caller still waits for the reply."""
        return not self.future.done()

    def settle(self, reply: Reply) -> None:
        """Settles the job with a reply, unless the caller has left."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(reply)

    def fail(self, error: BaseException) -> None:
        """Fails the job with an error, unless the job is already settled or its caller has left."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def expire(self) -> None:
        """Settles the job if its time ran out while it waited. By default no job has a time limit."""


J = TypeVar("J", bound=Job)  # type: ignore[type-arg]


class BatchWorker(Generic[J]):
    """Collects jobs from any thread or event loop and runs them in batches on one daemon thread.

    The oldest waiting job is always in the next batch, so none starves. A batch that raises fails all of
    its jobs; the worker continues.

    Args:
        run: Runs one batch; settles every job or raises.
        fits: Whether a job may join the jobs already chosen for a batch.
        name: Name of the thread, for debuggers and logs.
    """

    def __init__(
        self, run: Callable[[list[J]], None], *, fits: Callable[[list[J], J], bool], name: str
    ) -> None:
        self._run = run
        self._fits = fits
        self._name = name
        self._waiting: list[J] = []
        self._preparing = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Announces a call that will submit a job in a moment, so that jobs already waiting wait for it."""
        with self._changed:
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify()

    def submit(self, job: J) -> None:
        """Queues a job; starts the thread where none runs."""
        with self._changed:
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def drop_waiting(self) -> None:
        """Drops queued jobs that nobody waits for or whose time is up. Called while a batch runs."""
        if not self._waiting:  # unlocked on purpose: this runs once a token, and the next run repairs a miss
            return
        with self._changed:
            for job in self._waiting:
                job.expire()
            self._waiting = [job for job in self._waiting if job.wanted]

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run(batch)
            except BaseException as error:
                for job in batch:
                    job.fail(error)
            else:
                for job in batch:
                    job.fail(RuntimeError("the batch ended without a reply for this call"))
            del batch  # else the idle thread keeps prompts and replies alive

    def _next_batch(self) -> list[J]:
        """Waits for jobs; an empty list means that the thread has been idle for long and must end."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._waiting), timeout=IDLE_S):
                    self._thread = None
                    return []
                self._wait_for_company()
            self.drop_waiting()
            with self._changed:
                if batch := self._take():
                    return batch

    def _wait_for_company(self) -> None:
        start = time.monotonic()
        while len(self._waiting) < self._waiting[0].batch_limit:
            limit = start + (PREPARING_S if self._preparing else GRACE_S)
            if (left := limit - time.monotonic()) <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[J]:
        batch: list[J] = []
        for job in self._waiting:
            if not batch or (self._room(batch, job) and self._fits(batch, job)):
                batch.append(job)
        self._waiting = [job for job in self._waiting if job not in batch]
        return batch

    @staticmethod
    def _room(batch: list[J], job: J) -> bool:
        return len(batch) < min(job.batch_limit, *(other.batch_limit for other in batch))


_CONTEXT_TOKENS = 8
"""Prompt tokens the decoder sees first: some tokenizers drop the space before the first word they decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Result of one call.

    Attributes:
        text: The answer, without the stop string and the end of sequence.
        output_tokens: Every token generated, those of the stop string and the end of sequence included.
        finish_reason: ``stop`` at a stop string or the end of sequence, else ``length``.
        stop_reason: The stop string met, or `STOPPED`; None at the end of sequence and where the answer was
            cut.
        mean_token_probability: Mean probability of the tokens chosen, under the model's distribution before
            temperature and top_p. The end of sequence is left out unless it is the only token.
        lowest_window_probability: Lowest mean of ``probability_window`` consecutive ones of them.
        timed_out: Whether the time limit cut it.
        first_token_entropy: In nats, of the whole vocabulary, before temperature and top_p.
        label_probabilities: Probability of each label as the first token, under the same distribution.
    """

    text: str
    output_tokens: int
    finish_reason: Literal["stop", "length"]
    stop_reason: str | None = None
    mean_token_probability: float | None = None
    lowest_window_probability: float | None = None
    timed_out: bool = False
    first_token_entropy: float | None = None
    label_probabilities: dict[str, float] | None = None


class GenerationJob(Job[Generated]):
    """One call to a local chat model.

    Args:
        prompt: Token ids.
        settings: Settings of the call; ``max_tokens`` fits behind the prompt.
        batch_limit: Most calls to share a batch with, this one included.
        on_text: Called on the worker's thread with each chunk of the answer, in order.
        labels: Tokens whose probability as the first one is wanted, with the label that each spells; None:
            of none.
    """

    def __init__(
        self,
        prompt: list[int],
        settings: CallSettings,
        *,
        batch_limit: int,
        on_text: Callable[[str], None] | None = None,
        labels: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(batch_limit=batch_limit)
        self.labels = labels
        self.prompt = prompt
        self.settings = settings
        self.on_text = on_text
        self.deadline = None if settings.timeout is None else time.monotonic() + settings.timeout

    def late(self) -> bool:
        """Returns whether the time limit has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def expire(self) -> None:
        """Settles with an empty answer if the time limit passed before generation began."""
        if self.late():
            self.settle(Generated(text="", output_tokens=0, finish_reason="length", timed_out=True))


class Row:
    """A job in a running batch: takes its tokens one by one and settles it.

    Args:
        job: Whose row it is.
        tokenizer: Decodes the tokens.
        end_ids: Tokens that end a sequence.

    Attributes:
        first_token_entropy: Set by the code that sees the distribution.
        label_probabilities: Set there too.
    """

    def __init__(self, job: GenerationJob, tokenizer: Tokenizer, end_ids: Set[int]) -> None:
        self.job = job
        self.done = False
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._decoder = _Decoder(tokenizer, job.prompt[-_CONTEXT_TOKENS:])
        self._longest_stop = max(map(len, job.settings.stop), default=0)
        self._text = ""
        self._sent = 0
        self._tokens = 0
        self._probabilities: list[float] = []
        self.first_token_entropy: float | None = None
        self.label_probabilities: dict[str, float] | None = None

    def push(self, token: int, probability: float | None) -> None:
        """Takes the next token; nothing happens once the row is done."""
        if not self.done and not self.job.wanted:
            self.done = True
        if self.done:
            return
        self._tokens += 1
        ended = token in self._end_ids
        if probability is not None and not (ended and self._probabilities):
            self._probabilities.append(probability)
        if ended:
            self._finish("stop")
            return
        new_from = len(self._text)
        self._text += self._decoder.push(token)
        if found := self._first_stop(new_from):
            self._text = self._text[: found[0]]
            self._finish("stop", stop_reason=found[1])
        elif self._wants_no_more(new_from):
            self._finish("stop", stop_reason=STOPPED)
        elif self._tokens >= self.job.settings.max_tokens:
            self._finish("length")
        elif self.job.late():
            self._finish("length", timed_out=True)
        else:
            self._send(len(self._text) - self._held_back())

    def _first_stop(self, new_from: int) -> tuple[int, str] | None:
        """Returns the offset and text of the earliest stop string that the newest chunk completed."""
        start = max(0, new_from - self._longest_stop + 1)
        found = [(self._text.find(stop, start), stop) for stop in self.job.settings.stop]
        return min((hit for hit in found if hit[0] >= 0), default=None)

    def _wants_no_more(self, new_from: int) -> bool:
        """Calls the caller's function; its error ends this row, not the batch."""
        watch = self.job.settings.stop_when
        if watch is None or len(self._text) == new_from:
            return False
        try:
            return watch(self._text)
        except Exception as error:
            self.job.fail(error)
            return True

    def _held_back(self) -> int:
        """Returns how many characters at the end could begin a stop string."""
        for length in range(min(self._longest_stop - 1, len(self._text)), 0, -1):
            tail = self._text[-length:]
            if any(stop.startswith(tail) for stop in self.job.settings.stop):
                return length
        return 0

    def _send(self, until: int) -> None:
        if self.job.on_text is not None and until > self._sent:
            self.job.on_text(self._text[self._sent : until])
            self._sent = until

    def _finish(
        self, reason: Literal["stop", "length"], *, stop_reason: str | None = None, timed_out: bool = False
    ) -> None:
        self.done = True
        self._send(len(self._text))
        seen, window = self._probabilities, self.job.settings.probability_window
        self.job.settle(
            Generated(
                text=self._text,
                output_tokens=self._tokens,
                finish_reason=reason,
                stop_reason=stop_reason,
                mean_token_probability=sum(seen) / len(seen) if seen else None,
                lowest_window_probability=None if window is None else lowest_window_mean(seen, window),
                timed_out=timed_out,
                first_token_entropy=self.first_token_entropy,
                label_probabilities=self.label_probabilities,
            )
        )


class _Decoder:
    """Text of a growing token sequence. Holds incomplete characters back; a last one left so is dropped."""

    def __init__(self, tokenizer: Tokenizer, context: list[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        # A context that ends in the replacement character would be taken for an incomplete one.
        if tokenizer.decode(context, skip_special_tokens=True).endswith("\N{REPLACEMENT CHARACTER}"):
            context = []
        self._stream = DecodeStream(context, skip_special_tokens=True)

    def push(self, token: int) -> str:
        return self._stream.step(self._tokenizer, token) or ""


class RewardJob(Job[list[float]]):
    """One solution to be scored.

    Args:
        prm_input: Token ids and step positions.
        batch_limit: Most solutions to share a batch with, this one included.
    """

    def __init__(self, prm_input: PRMInput, *, batch_limit: int) -> None:
        super().__init__(batch_limit=batch_limit)
        self.input = prm_input
