"""The page as a reader has it: metrics, filters, keys, a phone."""

import pytest
from written_runs import a_row, a_summary, usual_rows, write_run

from trim_graph.report import write_report


def test_summary_pictures_and_a_trace(report, opened):
    seen = opened(report)
    page = seen.page
    assert page.title() == "arithmetic:standard:test \N{EN DASH} trim-graph report"
    assert "recovers 0.96 of the gap" in page.locator("#summary").text_content()
    assert "✓ worth it threshold-0.5 It saves 46" in page.locator("#summary").text_content()
    row = page.locator("#summary tr", has_text="threshold-0.5").first
    assert "0.970" in row.text_content()
    assert "0.940 to 0.970" in row.text_content()
    plots = page.locator("#plots img")
    assert plots.count() == 4
    widths = plots.evaluate_all("images => images.map((image) => image.complete && image.naturalWidth)")
    assert all(width > 100 for width in widths)
    assert all(plots.evaluate_all("images => images.map((image) => image.alt.length > 20)"))
    assert (seen.count(), seen.question()) == ("60 questions", "q-0")
    assert "Start with 47." in page.locator("#detail").text_content()
    # The policy's own arm is shown first; what every arm answered stands above.
    assert "threshold-0.5" in page.locator(".chip[aria-pressed=true]").text_content()
    assert page.locator(".chip").count() == 4
    assert seen.clean()


def test_drafts_show_their_writer_without_colour_and_hide_drafts(report, opened):
    seen = opened(report)
    page = seen.page
    page.locator(".row", has_text="q-1").first.click()
    steps = page.locator(".step")
    assert steps.count() == 4
    large = page.locator(".step.large").first
    assert large.locator(".writer").text_content() == "large"
    assert page.locator(".step.small .writer").first.text_content() == "small"
    colours = [one.evaluate("node => getComputedStyle(node).borderLeftColor") for one in (large, steps.last)]
    assert colours[0] != page.locator(".step.small").first.evaluate(
        "node => getComputedStyle(node).borderLeftColor"
    )
    draft = large.locator("details")
    assert not draft.locator(".text").is_visible()
    draft.locator("summary").click()
    assert draft.locator(".text").text_content().endswith("9.")
    assert draft.locator(".text").is_visible()
    fill = page.locator(".step .fill").first
    bar, filled = (node.evaluate("node => node.clientWidth") for node in (page.locator(".bar").first, fill))
    score = float(page.locator(".step .score").first.text_content().split()[-1])
    assert filled / bar == pytest.approx(score, abs=0.03)
    assert seen.clean()


def test_another_arm_of_a_question_is_one_click_away(report, opened):
    seen = opened(report)
    page = seen.page
    page.locator(".chip", has_text="large").click()
    assert page.locator(".step.large").count() == 4
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.locator("#arm").select_option(label="small")
    assert page.locator(".step.small").count() == 4


def test_filters_narrow_the_list_of_questions(report, opened):
    seen = opened(report)
    page = seen.page
    box = page.get_by_role("checkbox")
    wrong, over, differs, failed = (box.nth(at) for at in range(4))
    wrong.check()
    # Every seventh question of the policy, and the one that failed.
    assert seen.count() == "10 of 60 questions"
    failed.check()
    assert (seen.count(), seen.question()) == ("1 of 60 questions", "q-5")
    assert "OSError: gone" in page.locator("#detail").text_content()
    failed.uncheck()
    wrong.uncheck()
    over.check()
    assert (seen.count(), seen.question()) == ("1 of 60 questions", "q-6")
    page.get_by_label("Budget in large tokens").fill("71")
    assert seen.count() == "0 of 60 questions"
    assert "No question passes" in page.locator("#detail").text_content()
    over.uncheck()
    differs.check()
    assert seen.count() == "10 of 60 questions"
    page.locator("#arm").select_option(label="large")
    assert seen.count() == "0 of 60 questions"
    differs.uncheck()
    page.locator("#words").fill("Q-1")
    assert seen.count() == "11 of 60 questions"
    page.locator("#words").fill("start with 50.")
    assert (seen.count(), seen.question()) == ("1 of 60 questions", "q-3")
    assert seen.clean()


def test_keys_move_between_questions(report, opened):
    seen = opened(report)
    page = seen.page
    press = page.keyboard.press
    for key, question in (
        ("j", "q-1"),
        ("ArrowRight", "q-2"),
        ("k", "q-1"),
        ("ArrowLeft", "q-0"),
        ("k", "q-0"),
    ):
        press(key)
        assert seen.question() == question
    press("j")
    press("o")
    assert page.locator(".draft").count() >= 1
    assert page.locator(".draft:not([open])").count() == 0
    press("]")
    assert "random" in page.locator(".chip[aria-pressed=true]").text_content()
    press("/")
    page.keyboard.type("jok/")  # letters in a field are letters
    assert page.locator("#words").input_value() == "jok/"
    page.locator("#words").fill("")
    page.locator("#list").focus()
    press("End")
    assert seen.question() == "q-59"
    assert page.locator("#list").get_attribute("aria-activedescendant") == "option-59"
    assert page.locator("#option-59").get_attribute("aria-selected") == "true"
    press("PageUp")
    press("ArrowDown")
    press("Home")
    assert seen.question() == "q-0"
    assert seen.clean()


def test_every_control_can_be_reached_and_is_seen_to_have_the_focus(report, opened):
    seen = opened(report)
    reached = []
    for _ in range(40):
        seen.page.keyboard.press("Tab")
        found = seen.page.evaluate(
            """() => {
                const node = document.activeElement;
                const name = node.id || node.ariaLabel || node.className || node.type || node.tagName;
                return [name, getComputedStyle(node).outlineStyle];
            }"""
        )
        reached.append(found[0])
        assert found[0] == "BODY" or found[1] != "none", found
    for name in ("arm", "words", "list", "checkbox", "Next question", "chip", "SUMMARY"):
        assert name in reached, reached
    assert reached[0] == "skip"
    # A button that moves on keeps the focus, though all around it is new.
    seen.page.get_by_label("Next question").focus()
    seen.page.keyboard.press("Enter")
    seen.page.keyboard.press("Enter")
    assert seen.question() == "q-2"


def test_samples_reasoning_and_what_nobody_graded(tmp_path, opened):
    rows = [
        a_row(arm, index, sample, correct=None if index else sample == 0, seconds=float("inf"))
        for arm in ("large", "threshold-0.5")
        for index in (0, 1)
        for sample in (0, 1)
    ]
    for row in rows:
        row["steps"][0].update(part="reasoning", score=None, label=None)
    rows[-1].update(steps=[], solution="all in one")
    seen = opened(write_report(write_run(tmp_path / "run", rows))[0])
    page = seen.page
    assert "has not ended" in page.locator("#summary").text_content()
    assert "1/2" in page.locator(".row").first.text_content()
    assert page.locator(".chip", has_text="sample 2").count() == 2
    assert "wrong" in page.locator(".chip", has_text="threshold-0.5, sample 2").text_content()
    step = page.locator(".step").first
    assert "reasoning" in step.text_content()
    assert "no score" in step.text_content()
    assert step.locator(".bar, .badge.good, .badge.bad").count() == 0
    page.keyboard.press("j")
    assert "not graded" in page.locator(".chip").first.text_content()
    page.locator(".chip").last.click()
    assert "all in one" in page.locator("#detail").text_content()
    page.get_by_role("checkbox").first.check()
    assert seen.count() == "1 of 2 questions"
    assert seen.clean()


def test_the_verdict_with_its_number_and_colour_comes_first(tmp_path, opened):
    colours = set()
    for use, look in (("yes", "good"), ("no", "bad"), ("undecided", "open")):
        said = {"use": use, "arm": "threshold-0.5", "number": "saves 74 %", "text": f"Verdict {use}."}
        summary = a_summary(3, headline=said, warnings=["a warning"])
        page = opened(write_report(write_run(tmp_path / use, usual_rows(3), summary=summary))[0]).page
        first = page.locator("#summary > *").first
        assert first.get_attribute("class") == f"card headline {look}"
        large = "Undecided" if use == "undecided" else "saves 74 %"
        assert first.text_content() == f"{large}Verdict {use}."
        figure = first.locator(".figure")
        colours.add(figure.evaluate("node => getComputedStyle(node).color"))
        assert figure.evaluate("node => parseFloat(getComputedStyle(node).fontSize)") > 24
        assert page.locator("#summary > *").nth(1).text_content() == "⚠ a warning"
    assert len(colours) == 3


def test_a_summary_of_an_earlier_release_has_the_words_of_its_verdict_as_headline(tmp_path, opened):
    summary = a_summary(3)
    for name in ("headline", "command", "max_loss"):
        del summary[name]
    seen = opened(write_report(write_run(tmp_path / "run", usual_rows(3), summary=summary))[0])
    assert "worth itthreshold-0.5 recovers 0.96" in seen.page.locator(".headline.good").text_content()
    assert seen.clean()


def test_columns_are_explained_and_cost_is_in_tokens_without_prices(report, opened):
    page = opened(report).page
    heads = page.locator("#summary table").first.locator("th[scope=col]").all_text_contents()
    assert "Cost in tokens" in heads
    assert "Cost" not in heads
    tip = page.locator("#summary th .explained", has_text="PGR").first.get_attribute("title")
    assert "gap recovered" in tip
    assert not page.locator(".legend dl").is_visible()
    page.locator(".legend summary").click()
    assert tip in page.locator(".legend dl").text_content()
    assert page.locator(".legend dt").count() == page.locator(".legend dd").count() > 8


def test_a_point_of_the_plot_opens_the_questions_of_its_arm(report, opened):
    seen = opened(report)
    page = seen.page
    assert page.locator(".spot").count() == 4
    spot = page.get_by_label("large: accuracy 0.995, share 1.000. Show its questions")
    # It lies where the point is drawn: right of all others, and above the small model's.
    small = page.get_by_label("small: accuracy 0.400, share 0.000. Show its questions")
    own, other = (one.bounding_box() for one in (spot, small))
    assert own["x"] > other["x"] + 100
    assert own["y"] < other["y"] - 100
    spot.click()
    assert page.locator("#arm").input_value() == "1"
    assert "large" in page.locator(".chip[aria-pressed=true]").text_content()
    assert page.locator("#questions").evaluate("node => node.getBoundingClientRect().top") < 200
    assert page.evaluate("document.activeElement.id") == "list"
    assert seen.clean()


def test_the_commands_that_made_the_page_are_on_it(report, opened):
    commands = opened(report).page.locator("#made code").all_text_contents()
    assert commands == [
        "trim-graph eval --dataset arithmetic:standard --out run",
        f"trim-graph report {report.parent}",
    ]


def test_formulas_are_drawn_and_their_text_is_one_click_away(tmp_path, opened):
    written = r"So $\frac{x^2}{3} \le 4$, and $5 and $6 are money. \(\nonsense{1}\) stays."
    rows = [a_row("large", 0, expected=r"\frac{1}{2}", answer=r"\frac{1}{2}", question=f"q: {written}")]
    rows[0]["steps"][0]["text"] = written
    seen = opened(write_report(write_run(tmp_path / "run", rows))[0])
    page = seen.page
    text = page.locator(".step .text").first
    assert text.locator("math mfrac").count() == 1
    assert text.locator("math").evaluate("node => node.getBoundingClientRect().height") > 15
    assert text.text_content().endswith(r", and $5 and $6 are money. \(\nonsense{1}\) stays.")
    assert text.locator(".formula").get_attribute("title") == r"$\frac{x^2}{3} \le 4$"
    assert page.locator("#detail mfrac").count() == 4  # question, step, expected, answer
    assert page.locator(".step .text").last.locator("menclose").text_content() == "2"
    page.get_by_role("button", name="Raw text").click()
    assert page.locator("#detail math").count() == 0
    assert page.locator(".step .text").first.text_content() == written
    page.keyboard.press("r")
    assert page.locator("#detail mfrac").count() == 4
    assert seen.clean()


@pytest.mark.parametrize(("width", "wide"), [(390, True), (1900, False)])
def test_a_table_that_is_wider_than_the_page_says_that_it_scrolls(report, opened, width, wide):
    page = opened(report, width=width).page
    table = page.locator("#summary .scroll").first
    assert (table.evaluate("node => node.scrollWidth > node.clientWidth + 1")) is wide
    assert page.locator(".sideways").first.is_visible() is wide
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if wide:  # the name of the arm stays where it is
        left = "node => node.querySelector('tbody th').getBoundingClientRect().left"
        before = table.evaluate(left)
        table.evaluate("node => { node.scrollLeft = 120; }")
        assert table.evaluate(left) == pytest.approx(before, abs=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_either_scheme(report, opened, scheme):
    seen = opened(report, width=360, height=740, color_scheme=scheme, has_touch=True, is_mobile=True)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator(".row").nth(2).tap()
    assert seen.question() == "q-2"
    assert page.locator("#detail").evaluate("node => node.getBoundingClientRect().top") < 740
    page.locator(".draft summary").first.tap()
    assert page.locator(".draft .text").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(245, 246, 248)", "dark": "rgb(15, 18, 22)"}[scheme]
    source = page.locator("#plots img").first.evaluate("image => image.currentSrc")
    assert (source == page.locator("#plots img").first.get_attribute("src")) == (scheme == "light")
    assert seen.clean()


def test_of_thousands_of_questions_only_visible_rows_are_in_the_document(tmp_path, opened):
    n = 2000
    file = write_report(write_run(tmp_path / "run", usual_rows(n), summary=a_summary(n)))[0]
    seen = opened(file)
    page = seen.page
    assert seen.count() == "2,000 questions"
    assert page.locator(".row").count() < 60  # only what can be seen is in the document
    page.locator("#list").focus()
    page.keyboard.press("End")
    assert seen.question() == "q-1999"
    assert page.locator("#option-1999").is_visible()
    page.locator("#list").evaluate("node => { node.scrollTop = 58 * 1000; }")
    page.locator("#option-1003").click()
    assert seen.question() == "q-1003"
    assert page.locator(".row").count() < 60
    page.get_by_role("checkbox").first.check()
    assert seen.count() == f"{len(range(0, n, 7))} of 2,000 questions"
    page.keyboard.press("j")
    assert seen.clean()
