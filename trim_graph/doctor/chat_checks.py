"""Checks of servers and chat models: reachability, exact continuation, stops, usage, room and speed."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from trim_graph.adapters.vllm.prompts import KEPT, VLLMPrompts
from trim_graph.adapters.vllm.wire import dialect_of
from trim_graph.conversation import compose
from trim_graph.errors import ModelServerError

from .subjects import (
    ARITHMETIC,
    GENERAL,
    PROBE_TEXT,
    Finding,
    Subject,
    in_thread,
    reads_arithmetic,
)

_ROUTE_IS_MISSING = (400, 404, 405, 501)
"""Answers of vLLM's versions where a model's runner has no such endpoint."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


async def server(subject: Subject) -> Finding:
    """Checks that a server answers at the address."""
    root = subject.on_server.root
    try:
        listed = (await subject.on_server.get("/v1/models")).get("data") or []
        subject.known["models"] = [entry for entry in listed if isinstance(entry, dict)]
    except ModelServerError as error:
        if error.status not in (401, 403):
            if error.status is None and not error.begun:
                return Finding.error(
                    f"no server answers at {root}",
                    f"start it (trim-graph up does, on this machine), or correct base_url of {subject.part}",
                    ends=True,
                )
            return Finding.error(
                f"what answers at {root} is no vLLM server: {error}",
                f"correct base_url of {subject.part}, or let a gateway pass /v1/models on",
                ends=True,
            )
        subject.unauthorised = str(error)
    name, version = dialect_of(next(iter(subject.known.get("models", [])), {})).name, ""
    with suppress(ModelServerError):
        version = f" {(await subject.on_server.get('/version'))['version']}"
    return Finding.ok(f"{name}{version} answers at {root}")


async def key(subject: Subject) -> Finding:
    """Checks that the server takes the key, or needs none."""
    name = subject.entry.api_key_env
    given = bool(name and os.environ.get(name, "").strip())
    if subject.unauthorised:
        place = f"the environment variable {name}"
        if not name:
            place = f"an environment variable, and name that in api_key_env of {subject.part}"
        return Finding.error(subject.unauthorised, f"put the server's key into {place}", ends=True)
    if given and urlsplit(subject.on_server.root).scheme == "http" and not _is_here(subject):
        return Finding.warning(
            f"the key in {name} is taken, but goes to {subject.on_server.root} unencrypted",
            "reach that server over https or a private network",
        )
    return Finding.ok(f"the key in {name} is taken" if given else "the server wants none")


async def model(subject: Subject) -> Finding:
    """Checks that the server knows the model by its name."""
    entries = {str(entry.get("id")): entry for entry in subject.known["models"]}
    wanted, names = subject.entry.model, ", ".join(map(repr, entries)) or "nothing"
    if wanted not in entries:
        one = f"model: {next(iter(entries))}" if len(entries) == 1 else "one of them as model"
        return Finding.error(
            f"the server serves {names}; {wanted!r} is none of them",
            f"write {one} in {subject.part}, or start the server with --served-model-name {wanted}",
            ends=True,
        )
    subject.served = entries[wanted]
    place = subject.served.get("root")
    return Finding.ok(f"{wanted!r} is served{f', from {place}' if place else ''}")


async def writes(subject: Subject) -> Finding:
    """Checks that the server's model generates text."""
    error = await _refusal(subject, "/v1/chat/completions", _chat(subject))
    if error is None:
        return Finding.ok("the server generates text")
    if error.status in _ROUTE_IS_MISSING and await _refusal(subject, "/pooling", _pool(subject)) is None:
        return Finding.error(
            f"{subject.entry.model!r} is served as a pooling model, such as a process reward model, "
            "and writes no text",
            f"name a chat model in {subject.part}, and this one as the scorer (type: vllm_prm)",
            ends=True,
        )
    return Finding.error(
        f"the server refuses to generate: {error}", "see its log; vLLM has /v1/chat/completions", ends=True
    )


async def pools(subject: Subject) -> Finding:
    """Checks that the server's model gives scores."""
    error = await _refusal(subject, "/pooling", _pool(subject))
    if error is None:
        return Finding.ok("the server is a pooling server")
    if (
        error.status in _ROUTE_IS_MISSING
        and await _refusal(subject, "/v1/chat/completions", _chat(subject)) is None
    ):
        return Finding.error(
            f"{subject.entry.model!r} is served as a model that writes text, not as a process reward model",
            "name a process reward model in scorer; start it with --runner pooling (trim-graph up --print "
            "shows the whole command)",
            ends=True,
        )
    return Finding.error(
        f"the server refuses to give scores: {error}",
        "start it with --runner pooling; a gateway must let /pooling through",
        ends=True,
    )


async def tokens_of(subject: Subject, text: str) -> list[int] | None:
    """Returns the server's tokens of a text; None where it does not report them."""
    body = {"prompt": text, "add_special_tokens": False}

    async def post(path: str, asked: dict[str, Any]) -> Any:
        return await subject.on_server.post(path, {"model": subject.entry.model, **asked})

    with suppress(ModelServerError, KeyError, TypeError):
        return await dialect_of(subject.served).tokens(post, body)
    return None


async def _refusal(subject: Subject, path: str, body: dict[str, Any]) -> ModelServerError | None:
    try:
        await subject.on_server.post(path, {"model": subject.entry.model, **body})
    except ModelServerError as error:
        return error
    return None


def _chat(subject: Subject) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1, **_further(subject)}


def _further(subject: Subject) -> dict[str, Any]:
    return dict(getattr(subject.entry, "extra_body", {}))


def _pool(subject: Subject) -> dict[str, Any]:
    return {"input": "1"}


def _is_here(subject: Subject) -> bool:
    return urlsplit(subject.on_server.root).hostname in _LOOPBACK


WRITTEN = 128
"""Tokens asked for where a text is looked at."""
_CALLS = 3
_ALIKE = 8
"""Characters that two texts must share to count as the same."""


def conversation(subject: Subject, prefix: str = "") -> list[BaseMessage]:
    """Returns the messages that a run would send for the first sample, with `prefix` written already."""
    question = HumanMessage(subject.samples[0].question)
    return compose([question], subject.settings.instruction, prefix)


async def choose_samples(subject: Subject) -> None:
    """Finds out whether the model reads general texts or nothing but the arithmetic world."""
    tokens: list[int] | None = None
    if subject.server is not None:
        tokens = await tokens_of(subject, PROBE_TEXT)
    elif subject.entry.type in ("transformers", "example"):
        tokens = await in_thread(lambda: list(subject.adapter.get_token_ids(PROBE_TEXT)))
    subject.known["tokens"] = tokens
    subject.samples = ARITHMETIC if tokens is not None and reads_arithmetic(tokens) else GENERAL


async def continuation(subject: Subject) -> Finding:
    """Checks that the model continues a text byte for byte: newlines are part of the format."""
    if subject.server is None:
        return await _continuation_by_count(subject)
    if not dialect_of(subject.served).renders:
        return Finding.ok(
            "the server appends a text to be carried on to the rendered conversation, byte for byte"
        )
    how = subject.entry.continuation
    prompts = VLLMPrompts(
        subject.server, subject.entry.model, "auto", dict(subject.entry.chat_template_kwargs)
    )
    try:
        exact = await prompts.chat_is_exact()
    except ModelServerError as error:
        if how == "chat" and error.status in (404, 405):
            return Finding.warning(
                "whether the chat template keeps newlines cannot be checked: /tokenize is not let through",
                "let a gateway pass /tokenize and /detokenize on",
            )
        raise
    if exact:
        return Finding.ok("the chat endpoint carries a text on byte for byte")
    if how != "chat":
        return Finding.ok(
            "the chat template changes a text to be carried on (it trims, or adds to it), so the adapter "
            "renders it once and goes over /v1/completions, which is exact"
        )
    return Finding.error(
        "the chat template changes a text to be carried on (it trims, or adds to it), and continuation: chat "
        "forbids the way round it: newlines between steps would be lost",
        f"leave out continuation in {subject.part}, or write continuation: auto",
    )


async def system_message(subject: Subject) -> Finding:
    """Reports where the instruction is: in a role of the chat template, or in the first human message."""
    takes = getattr(subject.adapter, "takes_system_role", None)
    if takes is None or not dialect_of(subject.served).renders:
        return Finding.warning("cannot be checked: the model does not show its chat template")
    if await in_thread(takes):
        return Finding.ok("the chat template has a role for system messages")
    return Finding.ok(
        "the chat template has no role for system messages, so the instruction is in front of the first "
        "human message"
    )


async def special_tokens(subject: Subject) -> Finding:
    """Checks that special tokens in a user's text stay text."""
    prompts = VLLMPrompts(
        subject.on_server, subject.entry.model, "auto", dict(subject.entry.chat_template_kwargs)
    )
    try:
        tokens = await prompts.special_tokens_kept_plain()
    except ModelServerError as error:
        if error.status in (404, 405):
            return Finding.warning(
                "a text that holds something like a special token (<|end|>) is refused: whether it is one "
                "cannot be checked, because /tokenize is not let through",
                "let a gateway pass /tokenize and /detokenize on",
            )
        if error.status is None and not error.begun:
            return Finding.warning(f"a text that holds a special token is refused: {error}")
        raise
    if tokens:
        return Finding.ok(f"stay text where somebody writes them: {', '.join(tokens)}")
    return Finding.warning(
        "the chat template writes no special token of a known shape (<...>, [...], |...|); one of another "
        "shape in a question counts as what it is to the server"
    )


async def _continuation_by_count(subject: Subject) -> Finding:
    count = getattr(subject.adapter, "count_prompt_tokens", None)
    if count is None:
        return Finding.warning("cannot be checked: the model does not count prompt tokens")
    asked = conversation(subject)
    kept, cut = [
        await in_thread(partial(count, [*asked, AIMessage(text)]))
        for text in ("\n\n\tOne.\n\n \n\n\t\n", "One.")
    ]
    if kept > cut:
        return Finding.ok("newlines around a text to be carried on reach the model")
    return Finding.error(
        "newlines around a text to be carried on do not reach the model",
        "use a model whose chat template does not trim, or an adapter that continues exactly",
    )


async def by_prompt(subject: Subject) -> Finding:
    """Reports what it costs that a model cannot continue a text."""
    return Finding.warning(
        "this model cannot carry on a text exactly, so it is asked by prompt for each step: more tokens to "
        "read, and no exactness"
    )


async def writing(subject: Subject) -> Finding:
    """Checks that the model writes a text when asked as in a run; later checks use that text."""
    begun = time.monotonic()
    answer = await subject.adapter.ainvoke(conversation(subject), max_tokens=WRITTEN, temperature=0.0)
    took = time.monotonic() - begun
    subject.known["answer"] = answer
    if not answer.text.strip():
        return Finding.error(
            f"asked for {WRITTEN} tokens, the model writes nothing that can be seen",
            "look at its chat template and, in a thinking model, its reasoning parser",
            ends=True,
        )
    written = (answer.usage_metadata or {}).get("output_tokens") or 0
    subject.tokens_per_second = written / took if took and written else None
    shown = " ".join(answer.text.split())
    return Finding.ok(f"writes: {shown[:60]}{'...' if len(shown) > 60 else ''}")


async def carrying_on(subject: Subject) -> Finding:
    """Checks that the model, given the beginning of its own text, writes the rest and not the whole again."""
    text, delimiter = subject.known["answer"].text, subject.settings.delimiter
    cut = text.find(delimiter) + len(delimiter) if delimiter in text else text.find(" ", len(text) // 3)
    begun, rest = text[:cut], text[cut:]
    if cut <= 0 or len(rest) < _ALIKE:
        return Finding.warning(f"cannot be checked: the model writes but {text[:40]!r}")
    answer = await subject.adapter.ainvoke(conversation(subject, begun), max_tokens=WRITTEN, temperature=0.0)
    if (strange := await _another_prompt(subject, begun, answer)) is not None:
        return strange
    if answer.text[:_ALIKE] == rest[:_ALIKE]:
        return Finding.ok("the model carries on what stands there")
    if answer.text.lstrip()[:_ALIKE] == begun.lstrip()[:_ALIKE] or not answer.text.strip():
        return Finding.error(
            f"given {begun[-40:]!r} to carry on, the model "
            f"{'begins anew' if answer.text.strip() else 'writes nothing'}",
            "let a gateway pass on continue_final_message and add_generation_prompt of a request",
        )
    return Finding.warning(
        "cannot be checked: the model did not write the same again at temperature 0", "ask again"
    )


async def _another_prompt(subject: Subject, begun: str, answer: Any) -> Finding | None:
    """Compares the tokens that were read with those of the conversation, as the adapter counts them."""
    count = getattr(subject.adapter, "count_prompt_tokens", None)
    if not dialect_of(subject.served).renders:
        return None
    read = (answer.usage_metadata or {}).get("input_tokens")
    if count is None or not read or "usage_upper_bound" in answer.response_metadata:
        return None
    meant = await in_thread(partial(count, conversation(subject, begun)))
    if read == meant:
        return None
    return Finding.error(
        f"given {begun[-40:]!r} to carry on, the model read {read} tokens; carrying on exactly takes {meant}",
        "let a gateway pass on continue_final_message and add_generation_prompt of a request, and "
        "chat_template_kwargs where the configuration has some",
    )


async def usage(subject: Subject) -> Finding:
    """Checks that answers report the tokens that budgets count."""
    for how, answer in (("an answer", "answer"), ("a streamed answer", "streamed")):
        seen = subject.known.get(answer)
        used = getattr(seen, "usage_metadata", None) or {}
        bounded = seen is not None and "usage_upper_bound" in seen.response_metadata
        if seen is not None and (bounded or not (used.get("input_tokens") and used.get("output_tokens"))):
            return Finding.error(
                f"{how} does not report how many tokens it used, so each call counts as all its max_tokens",
                "let a gateway pass on the field usage"
                + (", and stream_options of the request" if answer == "streamed" else ""),
            )
    usage = subject.known["answer"].usage_metadata
    return Finding.ok(f"reported: {usage['input_tokens']} tokens read and {usage['output_tokens']} written")


async def cached_tokens(subject: Subject) -> Finding:
    """Checks that the server reports how much of a prompt came from its cache, for the bill."""
    again = subject.known.get("repeated") or subject.known["answer"]
    cached = (again.usage_metadata.get("input_token_details") or {}).get("cache_read")
    if cached is None:
        return Finding.warning(
            "the server does not report cached prompt tokens, so a bill counts them in full",
            "start vLLM with --enable-prompt-tokens-details",
        )
    return Finding.ok(f"reported: {cached} of {again.usage_metadata['input_tokens']} at a repeated call")


async def reasoning_limit(subject: Subject) -> Finding:
    """Checks that the server ends reasoning at a number of tokens, which ``min_answer_tokens`` needs."""
    dialect = dialect_of(subject.served)
    if dialect.limits_reasoning:
        error = await _refusal(
            subject, "/v1/chat/completions", {**_chat(subject), "thinking_token_budget": 1}
        )
        if error is None:
            return Finding.ok("the server ends reasoning at a number of tokens")
        why = str(error)
    else:
        why = f"{dialect.name} has no such field"
    return Finding.error(
        f"the server cannot keep min_answer_tokens={subject.entry.min_answer_tokens}, as it does not limit "
        f"reasoning: {why}",
        "start vLLM 0.32 or later with --reasoning-parser or --reasoning-config, or leave min_answer_tokens "
        f"out of {subject.part}",
    )


async def context_length(subject: Subject) -> Finding:
    """Checks that the context holds a step, and better a whole solution."""
    length, settings = longest(subject), subject.settings
    if length is None:
        return Finding.ok("not reported, so taken as enough")
    asked = (subject.known["answer"].usage_metadata or {}).get("input_tokens") or 0
    return room(subject.part, length, asked, settings.max_steps, settings.max_step_tokens)


def room(part: str, length: int, asked: int, max_steps: int, step_tokens: int) -> Finding:
    """Judges a context length against the settings.

    Args:
        part: Whose it is.
        length: Longest sequence, in tokens.
        asked: Tokens of a short question.
        max_steps: Most steps of a run.
        step_tokens: Most tokens of a step.
    """
    seen = f"{part} takes {length} tokens"
    if asked + step_tokens > length:
        return Finding.error(
            f"{seen}, but a question of {asked} and a step of max_step_tokens={step_tokens} make "
            f"{asked + step_tokens}",
            f"set max_step_tokens to {max(1, (length - asked) // 4)} or so, or serve the model with a larger "
            "--max-model-len",
        )
    if asked + max_steps * step_tokens > length:
        return Finding.warning(
            f"{seen}; a solution of max_steps={max_steps} steps of max_step_tokens={step_tokens} could need "
            f"{asked + max_steps * step_tokens}",
            "lower one of them if solutions get that long",
        )
    return Finding.ok(f"{seen}, enough for {max_steps} steps of {step_tokens}")


def longest(subject: Subject) -> int | None:
    """Returns the context length in tokens, from the server or from the model's folder."""
    if subject.server is not None:
        return dialect_of(subject.served).max_model_len(subject.served)
    place = getattr(subject.adapter, "model", None)
    with suppress(OSError, ValueError, TypeError):
        config = json.loads(Path(str(place), "config.json").read_text("utf-8"))
        limit = config.get("max_position_embeddings")
        return limit if isinstance(limit, int) else None
    return None


async def latency(subject: Subject) -> Finding:
    """Measures the seconds of the shortest call."""

    async def call() -> Any:
        return await subject.adapter.ainvoke(conversation(subject), max_tokens=1, temperature=0.0)

    subject.seconds = await median_seconds(call)
    speed = f", then {subject.tokens_per_second:.0f} tokens/s" if subject.tokens_per_second else ""
    return Finding.ok(f"{subject.seconds * 1000:.0f} ms to a first token (median of {_CALLS}){speed}")


async def median_seconds(call: Any) -> float:
    """Returns the median duration of a few calls, one after the other."""
    took = []
    for _ in range(_CALLS):
        begun = time.monotonic()
        await call()
        took.append(time.monotonic() - begun)
    return statistics.median(took)


async def time_limits(subject: Subject) -> Finding:
    """Checks that the longest step fits into the time limits."""
    if subject.seconds is None or not subject.tokens_per_second:
        return Finding.warning("cannot be checked: the speed was not seen")
    tokens = subject.settings.max_step_tokens
    step = subject.seconds + tokens / subject.tokens_per_second
    seen = f"a step of max_step_tokens={tokens} takes about {step:.1f} s"
    read_timeout, seconds = getattr(subject.entry, "read_timeout", None), subject.budget.seconds
    if read_timeout is not None and step > read_timeout:
        return Finding.error(
            f"{seen}, and read_timeout={read_timeout:g} would end it before as a dropped connection",
            f"set read_timeout of {subject.part} to {2 * step:.0f} or more",
        )
    if seconds is not None and step > seconds:
        return Finding.warning(f"{seen}, more than a run may take: seconds={seconds:g} in budget", "raise it")
    return Finding.ok(f"{seen}, within the limits")


_LONGER = 512
"""Tokens within which a short solution should end."""


async def stop(subject: Subject) -> Finding:
    """Checks that a call ends at its stop string and reports it."""
    return await _stops(subject, "repeated")


async def stop_streamed(subject: Subject) -> Finding:
    """Checks the same over a stream, which calls with a time limit use."""
    return await _stops(subject, "streamed", timeout=subject.timeout)


async def _stops(subject: Subject, name: str, **settings: Any) -> Finding:
    written = subject.known["answer"].text
    needle = _needle(written)
    if needle is None:
        return Finding.warning(f"cannot be checked: the model writes but {written[:40]!r}")
    answer = await subject.adapter.ainvoke(
        conversation(subject), stop=[needle], max_tokens=WRITTEN, temperature=0.0, **settings
    )
    subject.known[name] = answer
    reason, finish = (answer.response_metadata.get(key) for key in ("stop_reason", "finish_reason"))
    if needle in answer.text:
        return Finding.error(
            f"asked to stop at {needle!r}, the model writes past it, so no step would end at the delimiter",
            "let a gateway pass on the field stop of a request",
        )
    if reason == needle:
        place = getattr(subject.adapter, "stop_reported_in", "stop_reason")
        if place == KEPT:
            return Finding.warning(
                f"ends at a stop string, which only a text that keeps it shows ({KEPT}): the first answer "
                "of a process is asked for twice",
                "let a gateway pass on the field stop_reason of vLLM's answers",
            )
        return Finding.ok(f"ends at a stop string and reports it in {place}: {needle!r}")
    if written.startswith(answer.text) and len(answer.text) < len(written):
        return Finding.error(
            f"a call that ended at the stop string {needle!r} says stop_reason={reason!r}, "
            f"finish_reason={finish!r}: the end of a step looks like the end of the solution",
            "let a gateway pass on the field stop_reason of vLLM's answers; a server that does not report it "
            "cannot serve step by step",
        )
    return Finding.warning(
        "cannot be checked: the model did not write the same again at temperature 0",
        "ask again, without other load",
    )


def _needle(text: str) -> str | None:
    """Returns a string from the middle of a text, not at its start: the second word or sign."""
    found = re.search(r"\S+?\s+(\S+)", text)
    return found[1] if found and not text.startswith(found[1]) else None


async def end_of_sequence(subject: Subject) -> Finding:
    """Checks that the end of a text is recognisable: its answer names no stop string."""
    settings = {"stop": [subject.settings.delimiter * 4 + "<never>"], "temperature": 0.0}
    answer = await subject.adapter.ainvoke(conversation(subject), max_tokens=_LONGER, **settings)
    reason, finish = (answer.response_metadata.get(key) for key in ("stop_reason", "finish_reason"))
    if reason is not None:
        return Finding.error(
            f"a text that ended by itself says stop_reason={reason!r}, as if at a delimiter",
            "let a gateway pass on the field stop_reason as vLLM sends it",
        )
    if finish == "length":
        return Finding.warning(f"cannot be checked: the model did not end within {_LONGER} tokens")
    if finish != "stop":
        return Finding.error(
            f"a text that ended by itself says finish_reason={finish!r}, not 'stop'",
            "let a gateway pass on the field finish_reason",
        )
    return Finding.ok("reported: finish_reason='stop' without a stop string")
