import json

from written_runs import a_summary, usual_rows, write_run


def a_run(folder):
    told = a_summary(3)
    for arm in told["arms"]:
        figures = {"small_tokens": 300, "small_calls": 10, "small_prefill": 900, "scorer_tokens": 4000}
        arm["figures"] |= {name: {"value": value, "interval": None} for name, value in figures.items()}
    (policy,) = [arm for arm in told["arms"] if arm["kind"] == "policy"]
    told["arms"].append({**policy, "arm": "swept", "kind": "sweep"})
    return write_run(folder, usual_rows(3), summary=told)


def test_servers_from_measurements(run, tmp_path):
    place = a_run(tmp_path / "run")
    bench = {"output_throughput": 500.0, "total_token_throughput": 9e9}
    (tmp_path / "large.json").write_text(json.dumps(bench))
    asked = ("capacity", place, "--questions-per-second", 20, "--small", 2000, "--scorer", "1e5x2")
    asked += ("--large", f"{tmp_path / 'large.json'}x4", "--utilisation", 0.5)
    result = run(*asked)
    assert result.exit_code == 0, result.output
    assert "20 questions/s; a server carries 50% of what it was measured at" in result.stdout
    assert "threshold-0.5" in result.stdout
    told = json.loads(run(*asked, "--json").stdout)
    assert [one["arm"] for one in told] == ["large", "threshold-0.5", "swept"]
    needs = {need["part"]: need for need in told[1]["needs"]}
    assert {part: need["replicas"] for part, need in needs.items()} == {"small": 6, "large": 2, "scorer": 2}
    assert {part: need["gpus"] for part, need in needs.items()} == {"small": 6, "large": 8, "scorer": 4}
    assert (needs["small"]["prompt"], told[1]["gpus"]) == ([90, 0], 18)


def test_bad_input(run, tmp_path):
    place = a_run(tmp_path / "run")
    unfinished = write_run(tmp_path / "unfinished", usual_rows(1))
    (tmp_path / "odd.json").write_text('{"output_throughput": "fast"}')
    for arguments, complaint in (
        ((tmp_path, "--small", 1), "is no folder of an evaluation"),
        ((unfinished, "--small", 1), "has no summary yet"),
        ((place, "--small", 1), "no measured tokens a second of large were given"),
        ((place, "--small", "fast"), "--small fast: give tokens a second, or a result file"),
        ((place, "--large", tmp_path / "odd.json"), "it has no number output_throughput"),
        ((place, "--small", 1, "--arm", "best"), "no arm 'best'"),
    ):
        result = run("capacity", *arguments, "--questions-per-second", 1)
        assert (result.exit_code, complaint in result.stderr) == (2, True), result.output
