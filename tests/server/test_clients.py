"""Clients that people use: OpenAI's library, LangChain, LiteLLM, curl, lm-evaluation-harness."""

import json
import os
import re
import shutil
import subprocess
import sys

import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.server.conftest import KEY, QUESTION, TEXT, parts_of, wait_until


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served.url, api_key="any", max_retries=0) as client:
        yield client


def test_openai_gets_a_whole_answer(client):
    answer = client.chat.completions.create(model="trim", messages=QUESTION)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.trim["steps"] == {"small": 3, "large": 1}
    raw = client.chat.completions.with_raw_response.create(model="trim:0.05", messages=QUESTION)
    assert raw.headers["x-trim-large-steps"] == "0"
    assert raw.request_id == raw.parse().id


def test_openai_gets_a_stream(client):
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="trim", messages=QUESTION, stream=True, stream_options=options)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-2].trim["stopped"] == "finished"
    assert chunks[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(model="trim", messages=QUESTION) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_openai_sends_the_field_trim_and_reads_errors(client):
    body = {"trim": {"model": "large"}}
    assert (
        client.chat.completions.create(model="trim", messages=QUESTION, extra_body=body).trim["steps"][
            "small"
        ]
        == 0
    )
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="trim", messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (refused.value.param, refused.value.type) == ("tools", "invalid_request_error")
    assert "the small model of this server takes no tools" in refused.value.message
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="trim", messages=QUESTION, response_format={"type": "json_object"}
        )
    assert {model.id for model in client.models.list()} == {"trim", "small", "large"}


def test_tools_are_refused_where_a_fallback_takes_none(serve):
    parts = parts_of()
    server = serve(parts._replace(small=parts.small.with_fallbacks([parts.small])))
    client = openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(openai.BadRequestError, match="the small model of this server takes no tools"):
        client.chat.completions.create(model="trim", messages=QUESTION, tools=tools)


def test_openai_comes_back_when_the_server_is_full(serve):
    server = serve(parts_of(pace=0.2), max_questions=1)
    with openai.OpenAI(base_url=server.url, api_key="any", max_retries=5) as client:
        first = client.chat.completions.create(model="trim", messages=QUESTION, stream=True)
        next(iter(first))
        assert (
            client.chat.completions.create(model="trim", messages=QUESTION).choices[0].message.content == TEXT
        )
        first.close()
    assert server.metrics['trim_requests_total{point="configured",status="429"}'] >= 1


async def test_openai_asks_asynchronously_and_may_leave(serve):
    server = serve(parts_of(pace=0.2), {"ada": KEY})
    async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        answer = await client.chat.completions.create(model="trim", messages=QUESTION)
        assert answer.choices[0].message.content == TEXT
        ends = server.parts.small.ends
        ends.clear()
        async with await client.chat.completions.create(
            model="trim", messages=QUESTION, stream=True
        ) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
    wait_until(lambda: server.under_way == 0)
    assert ends == ["finished", "cancelled"]
    async with openai.AsyncOpenAI(
        base_url=server.url, api_key="key-of-eve-0123456789", max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="trim", messages=QUESTION)


async def test_langchain_asks_it_as_any_other_model(served):
    model = ChatOpenAI(
        model="trim", base_url=served.url, api_key="any", temperature=0, stream_usage=True, max_retries=0
    )
    answer = model.invoke("What is 2 + 2?")
    assert answer.content == TEXT
    assert answer.usage_metadata["total_tokens"] > 0
    assert (await model.ainvoke("What is 2 + 2?")).content == TEXT
    assert "".join(chunk.text for chunk in model.stream("What is 2 + 2?")) == TEXT
    whole = None
    async for chunk in model.astream("What is 2 + 2?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.text == TEXT
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]
    with pytest.raises(openai.BadRequestError, match="the small model of this server takes no tools"):
        model.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]).invoke("x")
    with pytest.raises(openai.BadRequestError, match="has no schema"):
        model.with_structured_output(method="json_mode").invoke("x")


LITELLM = """
import asyncio, json, sys
import litellm

question = [{"role": "user", "content": "What is 2 + 2?"}]
asked = dict(model="openai/trim", api_base=sys.argv[1], api_key="any", messages=question)
whole = litellm.completion(**asked)
parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
later = asyncio.run(litellm.acompletion(**{**asked, "model": "openai/trim:0.05"}, temperature=0))
try:
    litellm.completion(**{**asked, "model": "openai/gpt-4"})
except litellm.NotFoundError as error:
    refused = str(error)
print(json.dumps([whole.choices[0].message.content, "".join(parts), later.choices[0].message.content,
                  whole.usage.total_tokens, refused]))
"""


def test_litellm_gets_the_answer_whole_and_streamed(served):
    """In a process of its own: its import warns."""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, "-c", LITELLM, served.url],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    whole, streamed, later, tokens, refused = json.loads(done.stdout.splitlines()[-1])
    assert whole == streamed == TEXT
    assert later.startswith("small one\n\nsmall two")
    assert tokens > 0
    assert "model_not_found" in refused or "does not exist" in refused


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_a_stream_of_events(served):
    body = json.dumps({"model": "trim", "messages": QUESTION, "stream": True})
    command = [
        "curl",
        "-sSN",
        f"{served.url}/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    data = [line.removeprefix("data: ") for line in said.splitlines() if line]
    assert data[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in data[:-1]) == TEXT


TASK = """
task: trim_gsm8k
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, temperature: 0.0}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: [",", "(?s).*#### "]
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}, {function: take_first}]
"""
ROWS = [
    ("Ada has 3 apples and buys 4. How many has she?", "3 + 4 = 7\n#### 7"),
    ("A shelf holds 6 books, and there are 5 shelves. How many books are there?", "6 * 5 = 30\n#### 30"),
    ("Bo had 10 pens and lost 2. How many are left?", "10 - 2 = 8\n#### 8"),
]


def test_lm_evaluation_harness_measures_it_on_questions_like_those_of_gsm8k(serve, tmp_path):
    """As a user calls it, in a process of its own; the dataset is a file, since the test fetches none."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ROWS))
    (tmp_path / "trim_gsm8k.yaml").write_text(TASK.replace("ROWS", str(rows)))
    steps = ["It is a sum.", "#### 7"]
    server = serve(parts_of(steps, steps))
    settings = "num_concurrent=2,max_retries=1,tokenized_requests=False"
    arguments = f"model=trim,base_url={server.url}/chat/completions,{settings}"
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "local-chat-completions", "--model_args", arguments),
        *("--tasks", "trim_gsm8k", "--include_path", str(tmp_path), "--apply_chat_template"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    environment = {
        **os.environ,
        "OPENAI_API_KEY": "any",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]["trim_gsm8k"]
    assert scores["exact_match,strict-match"] == pytest.approx(1 / 3)
    assert server.metrics['trim_requests_total{point="configured",status="200"}'] == 3
    assert re.search("exact_match", done.stdout)
