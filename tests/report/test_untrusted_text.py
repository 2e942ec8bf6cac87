"""What models write is shown as it is written, and never does anything."""

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_runs import ARMS, a_row, a_summary, write_run

from trim_graph.report import write_report
from trim_graph.report.page import _data

HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<!--<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "]]><svg onload=window.pwned=1>",
    "<style>* { display: none }</style><base href='https://example.com/'>",
    '"></div><iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    "javascript:window.pwned=1 ${window.pwned=1} `${alert(1)}` &lt;b&gt; &#60;",
    "@policy@ @style@ @plots@",
    "\u2028\u2029\x00\x1b[31m\x7f",
)
OVERRIDE = "\u202egnp.exe\u202c \u2067isolated"
UNSEEN = "zero" + "\u200b" * 1000 + "width\ufeff"
RIGHT_TO_LEFT = "השלב הראשון: 2 + 2 = 4"
ZALGO = "z" + "\u0335\u0321\u0322\u0327\u0328" * 200
EVERYTHING = "\n".join((*HOSTILE, OVERRIDE, UNSEEN, RIGHT_TO_LEFT, ZALGO))
LONG = "a" * 1_000_000


def bad_row(arm, index, text):
    """A row with a text wherever there is text."""
    row = a_row(arm, index)
    for step in row["steps"]:
        step.update(text=text, decision=text)
        step["discarded"] = {
            **(step["discarded"] or {"tokens": 1, "score": 0.1, "label": None}),
            "text": text,
        }
    changed = dict.fromkeys(("id", "question", "expected", "answer", "stopped", "error"), text)
    return {**row, **changed, "arm": arm, "notes": [text], "correct": False}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report in which nothing is trusted; arms, policies and models have names of that kind too."""
    arms = {**ARMS, HOSTILE[0]: "policy", OVERRIDE: "sweep", "_hidden $x_1$ 中文": "sweep"}
    texts = (*HOSTILE, OVERRIDE, UNSEEN, RIGHT_TO_LEFT, ZALGO, EVERYTHING, LONG, " ".join(["word"] * 200_000))
    rows = [bad_row(arm, index, text) for arm in arms for index, text in enumerate(texts)]
    half = "half \ud800 of a pair " + EVERYTHING  # rows hold no such thing, a summary may
    verdict = {**a_summary(1)["verdicts"][0], "arm": half, "text": half}
    summary = a_summary(len(texts), verdict=half, warnings=[half], verdicts=[verdict, verdict])
    summary["arms"] += [
        {**summary["arms"][2], "arm": name, "family": name} for name in list(arms)[len(ARMS) :]
    ]
    summary["curves"][0]["family"] = half
    folder = write_run(tmp_path_factory.mktemp("hostile") / "run", rows, summary=summary, arms=arms)
    settings = json.loads((folder / "settings.json").read_text())
    settings["settings"]["dataset"] = {"type": "file", "file": EVERYTHING}
    settings["settings"]["small"]["model"] = EVERYTHING
    (folder / "settings.json").write_text(json.dumps(settings))
    return write_report(folder)[0]


def test_no_text_does_anything_but_stand_there(hostile, opened):
    seen = opened(hostile, width=360, height=740)
    page = seen.page
    questions = page.evaluate("document.querySelectorAll('script[id^=row-]').length")
    assert seen.count() == f"{questions} questions"
    for _ in range(questions):
        for at in range(page.locator(".chip").count() if questions < 3 else 2):
            page.locator(".chip").nth(at).click()
            page.keyboard.press("o")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.keyboard.press("j")
    kinds = page.evaluate("[...new Set([...document.body.querySelectorAll('*')].map((n) => n.localName))]")
    assert not {"iframe", "svg", "base", "style", "object", "a"} & set(kinds) - {"a"}
    assert page.locator("img").count() == 4
    assert page.locator("#list").is_visible()
    assert seen.clean(), seen.complaints


def test_text_is_shown_as_it_was_written(hostile, opened):
    seen = opened(hostile)
    shown = seen.page.locator(".step .text").first.text_content()
    assert shown == HOSTILE[0]
    for _ in range(HOSTILE.index("\u2028\u2029\x00\x1b[31m\x7f")):
        seen.page.keyboard.press("j")
    shown = seen.page.locator(".step .text").first.text_content()
    assert shown == "⟨U+2028⟩⟨U+2029⟩⟨U+0000⟩⟨U+001B⟩[31m⟨U+007F⟩"
    seen.page.keyboard.press("j")
    assert seen.page.locator(".step .text").first.text_content().startswith("⟨U+202E⟩gnp.exe⟨U+202C⟩")
    seen.page.keyboard.press("j")
    assert (
        seen.page.locator(".step .text").first.text_content()
        == "zero⟨U+200B \N{MULTIPLICATION SIGN}1000⟩width⟨U+FEFF⟩"
    )
    seen.page.keyboard.press("j")
    text = seen.page.locator(".step .text").first
    assert text.text_content() == RIGHT_TO_LEFT
    assert text.evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert "half ⟨U+D800⟩ of a pair" in seen.page.locator("#summary").text_content()


def test_a_megabyte_is_there_when_asked_for(hostile, opened):
    seen = opened(hostile)
    page = seen.page
    page.locator("#list").focus()
    page.keyboard.press("End")
    page.keyboard.press("k")
    assert len(page.locator("#detail").text_content()) < 200_000
    page.locator(".step .more").first.click()
    assert page.locator(".step .text").first.text_content() == LONG
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert seen.clean()


def test_the_policy_of_the_page_stops_what_might_get_in(report, opened):
    seen = opened(report)
    reported = seen.page.evaluate(
        """() => {
            const script = document.createElement("script");
            let errors = "";
            try {
                script.textContent = "window.pwned = 1";
                document.body.append(script);
            } catch (error) { errors += error.name; }
            try {
                document.body.innerHTML += "<img src=x onerror='window.pwned = 1'>";
            } catch (error) { errors += error.name; }
            const image = document.createElement("img");
            image.src = "http://127.0.0.1:9/";
            document.body.append(image);
            return errors;
        }"""
    )
    assert reported == "TypeErrorTypeError"
    assert seen.page.evaluate("window.pwned") is None
    seen.page.wait_for_function("() => true")
    assert any("Content Security Policy" in complaint for complaint in seen.complaints)


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@given(st.recursive(st.text() | st.sampled_from(HOSTILE), lambda inner: st.lists(inner, max_size=3)))
def test_data_is_one_script_element_whatever_it_holds(values):
    written = _data("row-1", {"it": values})
    assert re.fullmatch(r"[ -~]*\n", written)
    parser = Elements()
    parser.feed(written)
    parser.close()
    assert parser.found == [("script", {"type": "application/json", "id": "row-1"})]
    assert json.loads("".join(parser.text)) == {"it": values}
