"""What is reported of a chat template and of special tokens, on a recorded server."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.adapters.recorded_server import RecordedServer, chat_answer, failed
from trim_graph.adapters.vllm import client
from trim_graph.budget import Budget
from trim_graph.config import make_config
from trim_graph.doctor.chat_checks import reasoning_limit, special_tokens, system_message
from trim_graph.doctor.examination import checks_of
from trim_graph.doctor.subjects import Subject, subject_of


class Server(RecordedServer):
    """Has special tokens of its own, and strings of tokens as vLLM reports them."""

    end = "<|end|>"
    eats = ""

    def _tokenizer(self, body):
        if "tokens" in body:
            return {"prompt": "".join(chr(token) if token < 1000 else self.end for token in body["tokens"])}
        text = body["prompt"] if "prompt" in body else self.render(body)
        ids = [ord(c) for c in re.sub(re.escape(self.end) + self.eats, chr(1000), text)]
        return {"tokens": ids, "token_strs": [self.end if i == 1000 else chr(i) for i in ids]}

    def render(self, body):
        return (
            "".join(f"{turn['role']}: {turn['content']}{self.end}" for turn in body["messages"]) + "model: "
        )


@pytest.fixture
def subject(monkeypatch):
    def make(server: RecordedServer, **settings: Any) -> Subject:
        monkeypatch.setattr(client, "new_client", server.client)
        entry = {
            "type": "vllm",
            "model": "m",
            "base_url": f"http://vllm{time.monotonic_ns()}.test/v1",
            **settings,
        }
        config = make_config({"small": entry, "large": {**entry, "model": "n"}, "policy": "small_only"})
        return subject_of("small", config.small, config.settings, Budget(), 5.0)

    return make


async def test_tokens_that_stay_text_are_named(subject):
    finding = await special_tokens(subject(Server(chat_answer("so"))))
    assert (finding.status, finding.found) == ("ok", "stay text where somebody writes them: <|end|>")


async def test_what_would_be_refused_is_reported(subject):
    server = Server(chat_answer("so"))
    server.eats = " ?"
    finding = await special_tokens(subject(server))
    assert finding.status == "warning"
    assert "'<|end|>', a special token of m, which its tokenizer cannot write as plain text" in finding.found
    server = Server(chat_answer("so"))
    server.tokenizer_is_there = False
    finding = await special_tokens(subject(server))
    assert finding.status == "warning"
    assert "/tokenize is not let through" in finding.found
    server = Server(chat_answer("so"))
    server.end = "EOT"
    finding = await special_tokens(subject(server))
    assert finding.status == "warning"
    assert "no special token of a known shape" in finding.found


async def test_where_the_instruction_goes_is_reported(subject):
    server = Server(chat_answer("so"))
    assert "has a role" in (await system_message(subject(server))).found
    tokenizer = server._tokenizer

    def strict(body):
        roles = [turn["role"] for turn in body.get("messages", [])]
        return failed(400, "no system role") if "system" in roles else tokenizer(body)

    server._tokenizer = strict
    finding = await system_message(subject(server))
    assert finding.status == "ok"
    assert "in front of the first human message" in finding.found


@pytest.mark.parametrize(
    ("reply", "owner", "status", "found"),
    [
        (chat_answer("so"), "vllm", "ok", "ends reasoning at a number of tokens"),
        (
            failed(400, "reasoning_config is not configured"),
            "vllm",
            "error",
            "reasoning_config is not configured",
        ),
        (chat_answer("so"), "sglang", "error", "SGLang has no such field"),
    ],
)
async def test_a_server_that_cannot_limit_reasoning_is_found(subject, reply, owner, status, found):
    examined = subject(Server(reply), min_answer_tokens=50)
    examined.served = {"owned_by": owner}
    finding = await reasoning_limit(examined)
    assert (finding.status, found in finding.found) == (status, True)
    if status == "error":
        assert (
            "--reasoning-parser or --reasoning-config, or leave min_answer_tokens out of small" in finding.fix
        )


def test_reasoning_is_examined_where_a_model_keeps_tokens_for_its_answer(subject):
    server = Server(chat_answer("so"))
    assert "reasoning limit" in dict(checks_of(subject(server, min_answer_tokens=50)))
    assert "reasoning limit" not in dict(checks_of(subject(server)))
