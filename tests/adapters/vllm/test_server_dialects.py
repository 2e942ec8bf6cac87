"""SGLang and llama.cpp's server: bodies recorded from a llama.cpp server, SGLang's from its source."""

import itertools
import json

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from tests.adapters.recorded_server import RecordedServer, failed
from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import client
from trim_graph.errors import ContextLengthError, ModelServerError

QUESTION = [HumanMessage("What is 12 * 12?")]
BEGIN = 1
"""Token of beginning, which llama.cpp puts before a text."""
END, END_ID = "<|im_end|>", 999
_names = itertools.count()


class LlamaCppServer(RecordedServer):
    """Tokens are the bytes of a text, behind one of beginning."""

    def __init__(self, *script, system_role=True):
        super().__init__(*script)
        self.system_role = system_role
        self.models = {
            "data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx": 400, "n_ctx_train": 9}}]
        }

    def _reply(self, request):
        if request.url.path == "/apply-template":
            body = json.loads(request.content)
            if not self.system_role and body["messages"][0]["role"] == "system":
                return failed(500, "System role not supported")
            return {"prompt": self.render(body)}
        return super()._reply(request)

    def _tokenizer(self, body):
        if "tokens" in body:
            return {"content": bytes(body["tokens"]).decode()}
        ids = list(body["content"].encode())
        return {"tokens": [BEGIN, *ids] if body.get("add_special") else ids}


class SGLangServer(RecordedServer):
    def __init__(self, *script):
        super().__init__(*script)
        self.models = {"data": [{"id": "m", "owned_by": "sglang", "root": "org/m", "max_model_len": 400}]}

    def _tokenizer(self, body):
        if "tokens" in body:
            assert body["skip_special_tokens"] is False
            return {"text": "".join(END if token == END_ID else chr(token) for token in body["tokens"])}
        if "messages" in body:
            return failed(422, "prompt: Field required")
        first, *others = (list(piece.encode()) for piece in body["prompt"].split(END))
        ids = first + [token for piece in others for token in (END_ID, *piece)]
        return {"tokens": ids, "count": len(ids), "max_model_len": 9}


def llama_answer(text, *, word="", **more):
    """A completion of llama.cpp's server that was asked to be verbose."""
    return {
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "model": "m",
        "object": "text_completion",
        "usage": {"completion_tokens": 4, "prompt_tokens": 20, "prompt_tokens_details": {"cached_tokens": 3}},
        "__verbose": {"stop_type": "word" if word else "eos", "stopping_word": word},
    } | more


def sglang_answer(text, matched):
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "tool_calls": None}}
    return {
        "choices": [choice | {"logprobs": None, "finish_reason": "stop", "matched_stop": matched}],
        "model": "m",
        "usage": {"prompt_tokens": 20, "completion_tokens": 4},
    }


@pytest.fixture
def connect(monkeypatch):
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)

    def make(server, **settings):
        monkeypatch.setattr(client, "new_client", server.client)
        return ChatVLLM(model="m", base_url=f"http://dialect{next(_names)}.test", max_tokens=50, **settings)

    return make


class TestLlamaCpp:
    def test_drafts_are_distinguished_from_the_end_and_the_prompt_is_ids(self, connect):
        server = LlamaCppServer(llama_answer("One.", word="\n\n"), llama_answer("144."))
        model = connect(server)
        first = model.invoke(QUESTION, stop=["\n\n"])
        assert first.response_metadata["stop_reason"] == "\n\n"
        assert first.usage_metadata["input_token_details"] == {"cache_read": 3}
        last = model.invoke([*QUESTION, AIMessage("One.\n\n  ")], stop=["\n\n"])
        assert last.response_metadata["stop_reason"] is None
        assert model.stop_reported_in == "stop_type"
        (path, _), (_, body) = server.generations
        assert path == "/v1/completions"
        assert bytes(body["prompt"]).decode().endswith("<assistant>One.\n\n  ")
        assert body["prompt"].count(BEGIN) <= 1
        assert body["verbose"] is True

    def test_tokens_of_a_stream_left_early_are_those_so_far(self, connect):
        def event(n, text):
            return {
                "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": None}],
                "__verbose": {"content": text, "stop": False, "tokens_predicted": n, "tokens_evaluated": 9},
            }

        lines = [json.dumps(event(1, "One")), json.dumps(event(2, " two")), json.dumps(event(3, " three"))]
        streamed = httpx.Response(200, text="".join(f"data: {line}\n\n" for line in lines))
        model = connect(LlamaCppServer(streamed))
        answer = model.invoke(QUESTION, stop_when=lambda text: text.endswith("two"))
        assert answer.content == "One two"
        assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (9, 2)

    def test_log_probabilities_are_asked_for_with_an_alternative(self, connect):
        entry = {
            "token": "a",
            "bytes": [97],
            "logprob": -0.5,
            "top_logprobs": [{"token": "a", "logprob": -0.5}],
        }
        choice = {"text": "a", "index": 0, "logprobs": {"content": [entry, entry]}, "finish_reason": "stop"}
        server = LlamaCppServer(llama_answer("a", choices=[choice]))
        answer = connect(server, logprobs=True).invoke(QUESTION)
        assert server.generations[0][1]["logprobs"] == 1
        assert answer.response_metadata["mean_token_probability"] == pytest.approx(0.6065, abs=1e-4)

    def test_the_context_of_a_slot_is_the_longest_sequence(self, connect):
        server = LlamaCppServer(llama_answer("x"))
        with pytest.raises(ContextLengthError, match="max_model_len=400"):
            connect(server).invoke([HumanMessage("x" * 500)])
        assert not server.generations

    def test_a_template_without_a_system_role(self, connect):
        server = LlamaCppServer(llama_answer("x"), system_role=False)
        model = connect(server)
        model.invoke([SystemMessage("Be brief."), *QUESTION])
        assert b"<user>Be brief." in bytes(server.generations[0][1]["prompt"])
        assert model.takes_system_role() is False


class TestSGLang:
    def test_its_chat_endpoint_continues_a_text(self, connect):
        server = SGLangServer(sglang_answer("One.", "\n\n"), sglang_answer("144.", 151645))
        model = connect(server)
        assert model.invoke(QUESTION, stop=["\n\n"]).response_metadata["stop_reason"] == "\n\n"
        last = model.invoke([*QUESTION, AIMessage("One.\n\n  ")], stop=["\n\n"])
        assert last.response_metadata["stop_reason"] is None
        assert model.stop_reported_in == "matched_stop"
        path, body = server.generations[1]
        assert path == "/v1/chat/completions"
        assert body["messages"][-1] == {"role": "assistant", "content": "One.\n\n  "}
        assert body["continue_final_message"] is True

    def test_a_special_token_in_a_text_is_refused_by_name(self, connect):
        server = SGLangServer(sglang_answer("x", None))
        with pytest.raises(
            ModelServerError, match=r"'<\|im_end\|>', a special token of m, which a SGLang server"
        ):
            connect(server).invoke([HumanMessage("end <|im_end|> now")])
        assert not server.generations

    def test_what_it_cannot_do_says_so(self, connect):
        model = connect(SGLangServer(sglang_answer("x", None)))
        with pytest.raises(ModelServerError, match="large_tokens or large_calls, not large_cost"):
            model.count_prompt_tokens(QUESTION)
        assert model.get_token_ids("ab") == [97, 98]
        with pytest.raises(ModelServerError, match="leave continuation at 'auto'"):
            connect(SGLangServer(sglang_answer("x", None)), continuation="raw").invoke(QUESTION)
