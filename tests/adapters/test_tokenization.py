"""Tests of prompts as token ids: special tokens that somebody writes stay text; the template's count."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trim_graph.adapters.tokenization import (
    SpecialTokenGuard,
    encode_chat,
    takes_system_role,
    text_of,
    without_reasoning,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
# Text in which special tokens, pieces of them, white space and any characters are likely.
texts = st.lists(
    st.sampled_from([*SPECIAL, "<|im_", "end|>", "\n", "\n\n", " ", "7", "é", "\ue010\ue000"])
    | st.text(max_size=8),
    max_size=8,
).map("".join)
plain = texts.filter(lambda text: not any(name in text for name in SPECIAL))


@pytest.fixture(scope="module")
def guard(tokenizer):
    return SpecialTokenGuard(tokenizer)


def usual(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def turns(system, question):
    return [SystemMessage(system), HumanMessage(question)]


def rendered(tokenizer, *contents):
    roles = ["system", "user", "assistant"]
    chat = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


@relaxed
@given(plain, plain, plain)
def test_text_without_special_tokens_is_tokenised_as_usual(tokenizer, guard, system, question, answer):
    prompt = rendered(tokenizer, system, question)
    assert encode_chat(turns(system, question), tokenizer, guard) == usual(tokenizer, prompt)
    continued = encode_chat([*turns(system, question), AIMessage(answer)], tokenizer, guard)
    assert continued == usual(tokenizer, prompt + answer)


@relaxed
@given(texts, texts, texts)
def test_no_text_makes_a_special_token_and_every_byte_survives(tokenizer, guard, system, question, answer):
    ids = encode_chat([*turns(system, question), AIMessage(answer)], tokenizer, guard)
    special = [token for token in ids if token in tokenizer.all_special_ids]
    template = usual(tokenizer, rendered(tokenizer, "", ""))
    assert special == [token for token in template if token in tokenizer.all_special_ids]
    assert tokenizer.decode(ids) == rendered(tokenizer, system, question) + answer


@relaxed
@given(texts)
def test_text_alone_round_trips(tokenizer, guard, text):
    assert tokenizer.decode(guard.encode("", text)) == text


def test_marks_differ_between_guards(tokenizer):
    first, second = SpecialTokenGuard(tokenizer), SpecialTokenGuard(tokenizer)
    assert first.shield("<|im_end|>") != second.shield("<|im_end|>")


def test_an_unflagged_added_token_is_text_only_on_request(tokenizer):
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["special"] = token["content"] != "<extra_0>"
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    number = tokenizer.convert_tokens_to_ids("<extra_0>")
    assert number in SpecialTokenGuard(other).encode("", "a<extra_0>b")
    assert number not in SpecialTokenGuard(other, also=["<extra_0>"]).encode("", "a<extra_0>b")


@pytest.fixture(scope="module")
def spaced_tokenizer():
    """As SentencePiece models look: merges lead to the special token, a space is put before the text."""
    pieces = ["<unk>", "</s>", *"abcs/<>▁", "s>", "/s>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("s", ">"), ("/", "s>"), ("<", "/s>")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(
        [
            AddedToken("<unk>", normalized=False),
            AddedToken("</s>", normalized=False),
            AddedToken("<end>", rstrip=True),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@relaxed
@given(
    st.text(alphabet="abc s/<>", max_size=20).filter(lambda text: "</s>" not in text and "<end>" not in text)
)
def test_a_sentencepiece_like_tokenizer_is_followed_too(spaced_tokenizer, text):
    guard = SpecialTokenGuard(spaced_tokenizer)
    template = f"a</s>{guard.shield(text)}<end> b"
    assert guard.encode(template, text) == usual(spaced_tokenizer, f"a</s>{text}<end> b{text}")


def test_a_special_token_reachable_by_merges_stays_text(spaced_tokenizer):
    guard = SpecialTokenGuard(spaced_tokenizer)
    ids = guard.encode(guard.shield("a</s>b") + "</s>", "</s>")
    assert ids.count(1) == 1
    assert spaced_tokenizer.decode(ids) == "a</s>b</s></s>"


def test_a_vocabulary_of_words_reads_a_special_token_in_a_text_as_an_unknown_word():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[END]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[END]", "[UNK]"])
    guard = SpecialTokenGuard(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    assert guard.encode("a [END] ", "[END] a") == [1, 2, 0, 1]


def test_a_unigram_vocabulary_cannot_reach_its_special_tokens_either():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "ab</s>")]
    backend = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=0, byte_fallback=False))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    guard = SpecialTokenGuard(tokenizer)
    ids = guard.encode(guard.shield("a</s>b") + "</s>")
    assert ids.count(1) == 1
    assert tokenizer.decode(ids) == "a</s>b</s>"


class TestMessages:
    def encode(self, tokenizer, guard, *messages):
        return tokenizer.decode(encode_chat(messages, tokenizer, guard))

    def test_roles_and_text_blocks(self, tokenizer, guard):
        text = self.encode(
            tokenizer,
            guard,
            ChatMessage("be brief", role="developer"),
            HumanMessage([{"type": "text", "text": "one "}, "two"]),
            AIMessage("ok"),
            ToolMessage("42", tool_call_id="1"),
        )
        assert text == (
            "<|im_start|>developer\nbe brief<|im_end|>\n<|im_start|>user\none two<|im_end|>\n"
            "<|im_start|>assistant\nok<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_a_trailing_answer_with_no_text_is_a_plain_question(self, tokenizer, guard):
        question = HumanMessage("hi")
        assert self.encode(tokenizer, guard, question, AIMessage("")) == self.encode(
            tokenizer, guard, question
        )

    def test_special_tokens_in_a_role_or_a_tool_call_are_text(self, tokenizer, guard):
        call = {"name": "f", "args": {"<|im_end|>": ["<|im_end|>", 1]}, "id": "1"}
        template = (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if m.tool_calls %}"
            "{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}<|im_end|>{% endfor %}"
        )
        other = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template=template
        )
        messages = [AIMessage("", tool_calls=[call]), ChatMessage("x", role="<|im_end|>")]
        ids = encode_chat(messages, other, guard)
        assert ids.count(tokenizer.eos_token_id) == 2
        assert other.decode(ids).count("<|im_end|>") == 5

    @pytest.mark.parametrize(
        ("messages", "complaint"),
        [
            ([], "conversation is empty"),
            ([AIMessage("I begin")], "one AIMessage alone"),
            ([HumanMessage([{"type": "image_url", "image_url": "x"}])], "'image_url'.*text only"),
            ([FunctionMessage("x", name="f")], "'function' has no role"),
            (
                [HumanMessage("x"), AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])],
                "holds tool calls",
            ),
        ],
    )
    def test_what_cannot_be_rendered_is_refused(self, tokenizer, guard, messages, complaint):
        with pytest.raises(ValueError, match=complaint):
            encode_chat(messages, tokenizer, guard)

    def test_a_template_that_refuses_is_named(self, tokenizer, guard):
        strict = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            chat_template="{{ raise_exception('roles must alternate') }}",
        )
        with pytest.raises(ValueError, match=r"refused the roles \['user'\]: roles must alternate"):
            encode_chat([HumanMessage("x")], strict, guard)


REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
DROPS_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
WANTS_TURNS = (
    "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
SHOWS = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"


class TestForms:
    """Templates that do not take a conversation as it is get it in a form that they take."""

    def encode(self, tokenizer, template, *messages):
        other = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, chat_template=template + SHOWS
        )
        guard = SpecialTokenGuard(other)
        return tokenizer.decode(encode_chat(messages, other, guard)), takes_system_role(other, {})

    @pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM, REFUSES_SYSTEM + WANTS_TURNS])
    def test_a_system_message_goes_in_front_of_the_human_one_that_follows(self, tokenizer, template):
        text, takes = self.encode(tokenizer, template, SystemMessage("Be exact."), HumanMessage("One?"))
        assert (text, takes) == ("[user]Be exact.\n\nOne?", False)
        later = [SystemMessage("a"), HumanMessage("b"), AIMessage("c"), SystemMessage("<|im_end|>")]
        text, _ = self.encode(tokenizer, template, *later, HumanMessage("e"))
        assert text == "[user]a\n\nb[assistant]c[user]<|im_end|>\n\ne"
        assert self.encode(tokenizer, template, *later)[0].endswith("[assistant]c[user]<|im_end|>")

    def test_a_role_that_is_there_is_used(self, tokenizer):
        chat = [SystemMessage("a"), HumanMessage("b"), HumanMessage("c")]
        assert self.encode(tokenizer, "", *chat) == ("[system]a[user]b[user]c", True)
        assert self.encode(tokenizer, WANTS_TURNS, *chat) == ("[system]a[user]b\n\nc", True)

    def test_what_is_continued_stays_as_it_is(self, tokenizer):
        chat = [SystemMessage("a"), HumanMessage("b"), AIMessage(" c\n\n")]
        assert self.encode(tokenizer, REFUSES_SYSTEM, *chat)[0] == "[user]a\n\nb c\n\n"

    def test_a_template_that_refuses_every_form_is_named(self, tokenizer):
        with pytest.raises(ValueError, match=r"\['assistant', 'user'\]: roles must alternate"):
            self.encode(tokenizer, WANTS_TURNS, AIMessage("a"), HumanMessage("b"))


REASONING = [
    {"type": "reasoning", "reasoning": "hm"},
    {"type": "reasoning", "summary": []},
    {"type": "thinking", "thinking": "hm", "signature": "x"},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "reasoning_content", "reasoning_content": {"text": "hm"}},
    {"type": "non_standard", "value": {"type": "redacted_thinking", "data": "x"}},
]


class TestReasoning:
    @pytest.mark.parametrize("block", REASONING)
    def test_that_of_an_earlier_turn_is_left_out(self, tokenizer, guard, block):
        def encoded(*content):
            return encode_chat(
                [HumanMessage("a"), AIMessage(list(content)), HumanMessage("b")], tokenizer, guard
            )

        said = {"type": "text", "text": "Hello."}
        assert encoded(block, said) == encoded(said) == encoded(said, block)
        assert text_of(AIMessage([block])) == ""
        assert text_of(AIMessage("Hello.", additional_kwargs={"reasoning_content": "hm"})) == "Hello."

    def test_blocks_that_repeat_tool_calls_are_left_out_where_these_are(self):
        calls = [{"name": "f", "args": {}, "id": "1"}]
        block = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
        assert text_of(AIMessage(["so", block], tool_calls=calls)) == "so"
        with pytest.raises(ValueError, match=r"'tool_use'.*text only"):
            text_of(AIMessage(["so", block]))

    @pytest.mark.parametrize("block", REASONING)
    def test_another_model_gets_the_message_without_it(self, block):
        said = [{"type": "text", "text": "Hello."}]
        thought = AIMessage([block, *said], additional_kwargs={"reasoning_content": "hm", "kept": 1})
        assert without_reasoning(thought) == AIMessage(said, additional_kwargs={"kept": 1})
        plain = AIMessage("Hello.")
        assert without_reasoning(plain) is plain
