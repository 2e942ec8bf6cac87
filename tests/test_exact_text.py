"""What a model asked by prompt writes is what the final message holds, byte for byte."""

from __future__ import annotations

import ast
import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from trim_graph.adapters.prompted.protocol import DONE, START
from trim_graph.policies import large_only, small_only
from trim_graph.segmentation import markdown

D = "\n\n"
LETTERS = 4
"""Of a token."""
PROGRAM = """\
Take this program:

```python
def double(x):
    y = x * 2

    if y > 10:

        print("a large number, as was to be expected of it")
    return y

class Tester:

\tname = 1  \n
\tother = 2
```

- first

  - nested

    - deeper

So it is \\boxed{4}."""


class Hosted(BaseChatModel):
    """Writes one text as it is asked to, by prompt; its limit cuts an answer anywhere."""

    text: str
    talkative: bool = False
    """Whether it writes all that remains when asked for a step."""
    again: bool = False
    """Whether it repeats the words of a cut step as it is asked to, or just continues."""

    @property
    def _llm_type(self) -> str:
        return "hosted"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, max_tokens: int = 10**6, **_: Any
    ) -> ChatResult:
        written = next((str(m.text) for m in messages if isinstance(m, AIMessage)), "")
        request = str(messages[-1].text)
        answer = f"{START}\n{self._rest(written, request)}"
        cut = len(answer) > max_tokens * LETTERS
        message = AIMessage(
            answer[: max_tokens * LETTERS],
            usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
            response_metadata={"finish_reason": "length" if cut else "stop"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _rest(self, written: str, request: str) -> str:
        if written == f"{self.text}\n":  # its limit has cut it between that line break and the mark
            return DONE
        assert self.text.startswith(written)
        words = re.search(r'ends with, "(.*?)", and', request, re.DOTALL)
        begin = len(written)
        if words and self.again:
            begin = len(written.rstrip()) - len(words[1])
            assert self.text[begin:].startswith(words[1])
        rest = self.text[begin:]
        if "cut off" not in request:
            rest = rest.removeprefix(D)
        if not rest.strip():
            return DONE
        more = rest.find(D, len(rest) - len(rest.lstrip()))
        if self.talkative or "all that remains" in request or more < 0:
            return f"{rest}\n{DONE}"
        return rest[:more]


def written_by(make: Any, model: Hosted, **options: Any) -> str:
    given = {"policy": small_only(), "scores": {}, "instruction": None, "max_steps": 200, **options}
    result = make(model, model, **given).ask()
    assert result["trim"]["stopped"] == "finished"
    return str(result["messages"][-1].text)


@pytest.mark.parametrize("talkative", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("tokens", [20, 30, 512])
def test_a_program_still_parses(make, talkative, again, tokens):
    model = Hosted(text=PROGRAM, talkative=talkative, again=again)
    text = written_by(make, model, max_step_tokens=tokens)
    ast.parse(text.partition("```python\n")[2].partition("```")[0])
    assert text == PROGRAM


def test_a_handover_is_the_large_models_text(make):
    model = Hosted(text=PROGRAM)
    assert written_by(make, model, policy=large_only()) == model.text


@pytest.mark.parametrize("tokens", [30, 512])
def test_so_is_a_text_whose_steps_are_blocks_of_markdown(make, tokens):
    model = Hosted(text=PROGRAM)
    assert written_by(make, model, segmentation=markdown(), max_step_tokens=tokens) == PROGRAM


blanks = st.text(" \t", max_size=4)
line_breaks = st.sampled_from(["\n", "\n", "\r\n", "\r\n\r\n", "\n \n", "\n\t\n"])
signs = st.sampled_from(["", "= ", "(", "`", "```", "~~~", "- ", "$$ ", "}", "{", "| ", "# ", "\\begin{a}"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Steps of several lines each, with any blanks and line breaks; every word is another one."""
    word = itertools.count(1)
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        step = draw(blanks) + f"step{next(word)}"
        for _ in range(draw(st.integers(0, 5))):
            line = [f"{sign}word{next(word)}" for sign in draw(st.lists(signs, min_size=1, max_size=8))]
            step += draw(blanks) + draw(line_breaks) + draw(blanks) + draw(st.sampled_from(" \t")).join(line)
        steps.append(step + draw(blanks))
    return D.join(steps).rstrip()


@settings(max_examples=200, deadline=None)
@given(text=texts(), talkative=st.booleans(), again=st.booleans(), tokens=st.integers(30, 80))
def test_what_the_model_wrote_is_what_the_final_message_holds(make, text, talkative, again, tokens):
    model = Hosted(text=text, talkative=talkative, again=again)
    assert written_by(make, model, max_step_tokens=tokens).rstrip("\n") == text


@settings(max_examples=80, deadline=None)
@given(text=texts(), tokens=st.integers(30, 200))
def test_so_does_all_that_remains_after_a_handover(make, text, tokens):
    model = Hosted(text=text)
    assert written_by(make, model, policy=large_only(), max_step_tokens=tokens).rstrip("\n") == text
