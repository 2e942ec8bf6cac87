from written_runs import a_summary, usual_rows, write_run


def test_a_report(run, tmp_path):
    write_run(tmp_path / "run", usual_rows(3), summary=a_summary(3))
    result = run("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "report.html: 0." in result.stdout
    assert "8 pictures in" in result.stdout
    assert (tmp_path / "run/report.html").read_text("utf-8").startswith("<!doctype html>")


def test_bad_input(run, tmp_path):
    write_run(tmp_path / "run", usual_rows(1))
    for arguments, complaint in (
        ((tmp_path,), "is no folder of an evaluation"),
        ((tmp_path / "run", "--out", tmp_path / "page.txt"), "must end in .html"),
        ((tmp_path / "run", "--out", tmp_path / "no/page.html"), "cannot be written: No such file"),
    ):
        result = run("report", *arguments)
        assert (result.exit_code, complaint in result.stderr) == (2, True), result.output
    assert not list(tmp_path.rglob("*.html*"))
