"""Tests of the subjects of `doctor`, of its sample questions, and of its report."""

from tests.doctor.test_examination import GENERATIVE, JUDGE, PRM, SERVED, config, names_of_checks
from trim_graph.budget import Budget
from trim_graph.config.schema import FileSettings
from trim_graph.doctor.subjects import ARITHMETIC, GENERAL, Finding, Report, subject_of, subjects_of


def test_an_adapter_is_made_impatient():
    made = config(scorer=PRM)
    for part in ("small", "scorer"):
        subject = subject_of(part, getattr(made, part), made.settings, made.budget, 3.0)
        assert (subject.server.max_retries, subject.server.read_timeout) == (0, 3.0)
    assert subject_of("small", made.small, made.settings, made.budget, 3.0).adapter.max_retries == 0


def test_the_server_of_a_judges_model_is_examined():
    made = config(scorer=JUDGE).scorer
    assert names_of_checks("scorer", made)[:4] == ["server", "key", "model", "generation"]
    subject = subject_of("scorer", made, FileSettings(), Budget(), 3.0)
    assert subject.server.root == "http://127.0.0.1:8001"
    urls = ["http://a:1", "http://b:1"]
    spread = config(scorer={**JUDGE, "model": {**SERVED, "base_url": urls}}).scorer
    replicas = subjects_of("scorer", spread, FileSettings(), Budget(), 3.0)
    assert [one.name for one in replicas] == ["scorer at http://a:1", "scorer at http://b:1"]


def test_the_parts_of_a_combined_scorer_are_made_impatient_too():
    scorer = {"type": "minimum", "scorers": [{"type": "cascade", "first": JUDGE, "second": PRM}, GENERATIVE]}
    hasty = subject_of("scorer", config(scorer=scorer).scorer, FileSettings(), Budget(), 3.0)
    assert hasty.server is None
    cascade, plus = hasty.adapter.scorers
    assert (cascade.first.cache_size, cascade.first.model.max_retries) == (0, 0)
    for one in (cascade.second, plus):
        assert (one.cache_size, one.max_retries, one.read_timeout) == (0, 0, 3.0)


def test_samples_differ_in_their_last_step_only():
    for sample in (*GENERAL, *ARITHMETIC):
        right, wrong = sample.right_steps, sample.wrong_steps
        assert right[:-1] == wrong[:-1]
        assert right[-1] != wrong[-1]
    assert len({sample.question for sample in GENERAL}) == len(GENERAL) >= 5


def test_the_arithmetic_samples_are_what_the_exact_check_says():
    """Every calculation in a right step holds; the last of a wrong form does not follow from the question."""
    import re

    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "mod": int.__mod__}
    for sample in ARITHMETIC:
        for step in sample.right:
            left, sign, right, result = re.search(r"(\d+) (\+|-|\*|mod) (\d+) = (\d+)", step).groups()
            assert operations[sign](int(left), int(right)) == int(result), step


def test_a_report_counts_and_hides_secrets():
    report = Report(
        (
            Finding("ok", "all well", part="small", check="server"),
            Finding("warning", "slow", "wait", part="small", check="latency"),
            Finding("error", "the server said sk-1", "not sk-1", part="large", check="key"),
        )
    ).without(["sk-1", ""])
    assert "sk-1" not in str(report.record())
    assert report.verdict == "1 error (large), 1 warning: fix them before a run"
    assert report.errors[0].sentence == "large, key: what is wrong: the server said ***; fix it: not ***"
    assert Report(report.findings[:1]).verdict == "no error: this set-up does what a run needs"
