import json
import re
import signal
import time

import pytest

from trim_graph.cli.solve import against_large_alone

CHAIN = (
    "Start with 34. Step 1: add 12. Step 2: multiply by 7. Step 3: take away 5. "
    "Step 4: take the larger of it and 20. Always keep only the last two digits. What is the final number?"
)


def test_drafts_scores_decisions_and_the_bill(world, run):
    result = run("solve", CHAIN)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[:7] == [
        "  1  small  0.90  accept     Step 1: 34 + 12 = 46.",
        "  2  large  0.10  regenerate Step 2: 46 * 7 = 322, keep 22.",
        "                           instead of: Step 2: 46 * 7 = 322, keep 1.",
        "  3  small  0.90  accept     Step 3: 22 - 5 = 17.",
        "  4  small  0.90  accept     Step 4: the larger of 17 and 20 is 20.",
        "  5  small  0.90  accept     The answer is \\boxed{20}.",
        "",
    ]
    assert "small   4 steps   32 tokens accepted, 10 discarded, 5 calls" in lines
    assert "large   1 step    10 tokens accepted, 1 call" in lines
    assert "answer  20" in lines
    assert "stopped finished: the solution has ended" in lines
    assert not any(line.startswith("cost") for line in lines)


def test_explain_says_below_each_step_why_it_went_to_its_writer(world, run):
    lines = [line.strip() for line in run("solve", CHAIN, "--explain").stdout.splitlines()]
    rewritten = lines.index("because threshold(0.5) had the large model write the step again (score 0.1)")
    assert lines[rewritten - 1].startswith("instead of: Step 2")
    accepted = "because threshold(0.5) accepted the small model's draft (score 0.9)"
    assert lines.count(accepted) == 4
    assert not any(line.startswith("because") for line in run("solve", CHAIN).stdout.split("\n"))


def test_net_savings_are_shown_and_in_the_record(world, run):
    lines = run("solve", CHAIN).stdout.splitlines()
    (against,) = [line for line in lines if line.startswith("against")]
    known = "against the large model alone (estimate): 32 fewer large tokens, 391 more tokens in all, "
    assert re.fullmatch(re.escape(known) + r"\d+\.\d\d s (faster|slower)", against)
    (seconds,) = [line for line in lines if line.startswith("seconds")]
    assert re.fullmatch(r"seconds \d+\.\d\d", seconds)
    record = json.loads(run("solve", CHAIN, "--policy", "large", "--json").stdout)
    assert record["summary"]["savings"]["tokens"] == 0
    assert record["steps"][0]["why"] == ("large_only() named the large model for this and all further steps")


def test_net_savings_are_said_in_words():
    known = {"large_tokens": 14.0, "tokens": -1224.4, "cost": -0.0012, "seconds": -2.741}
    words = "14 fewer large tokens, 1224 more tokens in all, 0.0012 more expensive, 2.74 s slower"
    assert against_large_alone(known) == words
    assert against_large_alone({**known, "tokens": None, "cost": 0.5, "seconds": 1.0}) == (
        "14 fewer large tokens, 0.5 cheaper, 1.00 s faster"
    )
    assert against_large_alone(dict.fromkeys(known)) == "unknown"


def test_json_contains_answer_steps_and_usage(world, run):
    result = run("solve", CHAIN, "--json")
    record = json.loads(result.stdout)
    assert record["answer"] == "20"
    assert record["question"] == CHAIN
    assert [step["writer"] for step in record["steps"]] == ["small", "large", "small", "small", "small"]
    assert record["steps"][1]["discarded"]["score"] == 0.1
    assert record["steps"][1]["score"] == 0.9  # scored with the draft after it
    assert record["summary"]["usage"]["large"]["calls"] == 1


def test_space_in_the_problem_does_not_matter(world, run):
    result = run("solve", f"  {CHAIN.replace('. ', '.' + chr(10))}\n", "--json")
    assert json.loads(result.stdout)["question"] == CHAIN


def test_options_replace_policy_and_limits(world, run):
    assert "large   0 steps" in run("solve", CHAIN, "--policy", "small_only").stdout
    assert "large   5 steps" in run("solve", CHAIN, "--threshold", "1").stdout
    assert "large   5 steps" in run("solve", CHAIN, "--policy", "{type: random_rate, rate: 1}").stdout
    for policy, steps in (("small", 0), ("large", 5), ("1", 5), ("0.05", 0)):
        assert f"large   {steps} steps" in run("solve", CHAIN, "--policy", policy).stdout
    spent = run("solve", CHAIN, "--threshold", "1", "--large-calls", "1").stdout
    assert "large   1 step " in spent
    assert "note    the limit on large_calls is spent: the large model is not called any more" in spent


def test_a_limit_may_be_a_remainder_that_is_used_up(world, run):
    for option, limit in (("--large-tokens", "large_tokens"), ("--large-calls", "large_calls")):
        reported = run("solve", CHAIN, "--threshold", "1", option, "0")
        assert reported.exit_code == 0, reported.output
        assert "large   0 steps" in reported.stdout
        assert f"note    the limit on {limit} is spent" in reported.stdout
    assert "stopped deadline" in run("solve", CHAIN, "--seconds", "0").stdout


def test_a_refused_wish_is_shown(world, run):
    (world / "trim.yaml").write_text(
        "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"
        "policy: {type: threshold, t: 1}\nbudget: {large_cost: 0.00001}\n"
        "prices: {large: {output: 0.1}}\nsettings: {max_step_tokens: 9}\n"
    )
    result = run("solve", CHAIN, "--config", "trim.yaml")
    assert result.exit_code == 0
    assert "cost    0.0000" not in result.stdout
    assert "\ncost " in result.stdout


def test_text_cannot_steer_the_terminal(world, run, monkeypatch):
    from trim_graph.cli.solve import printable

    assert printable("a\x1b[2Jb\nc\ud800") == f"a\\x1b[2Jb\n{' ' * 27}c\\ud800"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), 'a problem is missing: trim-graph solve "PROBLEM"'),
        (("",), 'the problem is empty: trim-graph solve "PROBLEM"'),
        ((" \n",), "the problem is empty"),
        ((CHAIN, "--seconds", "nan"), "budget.seconds: is nan"),
        ((CHAIN, "--threshold", "2"), "command line: policy.t: is 2.0; it should be less than or equal to 1"),
        ((CHAIN, "--threshold", "nan"), "policy.t: is nan"),
        ((CHAIN, "--policy", "treshold"), "unknown type 'treshold', did you mean threshold?"),
        ((CHAIN, "--policy", "{type: "), "--policy '{type: ' is neither a name nor a mapping"),
        ((CHAIN, "--policy", "small_only", "--threshold", "1"), "--policy and --threshold both choose"),
        ((CHAIN, "--config", "nix.yaml"), "configuration file nix.yaml does not exist (looked for /"),
        ((CHAIN, "--thread", "a"), "--thread needs a checkpoint that outlives the command, and it is none"),
        (("--resume",), "--resume needs --thread"),
        ((CHAIN, "--resume", "--thread", "a"), "leave out the problem"),
        (("--resume", "--thread", "a", "--threshold", "1"), "leave out the options"),
    ],
)
def test_errors_are_a_line_and_exit_with_2(world, run, arguments, said):
    result = run("solve", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("trim-graph: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("What is 2 + 2?", "'What is 2 + 2?' belongs to none of their stories"),
        (
            "Start with 4. Step 1: cube it. Always keep only the last two digits. What is the result?",
            "cube it",
        ),
    ],
)
def test_an_unreadable_problem_shows_both_forms(world, run, problem, said):
    result = run("solve", problem)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "  Start with 34. Step 1: add 12." in result.stderr
    assert "  Tom has 23 apples." in result.stderr


def test_a_model_that_fails_is_an_error_of_one_line(world, run, monkeypatch):
    from trim_graph.cli.solve import load_parts

    parts = load_parts(None)

    def fail(*arguments, **options):
        raise ValueError("the prompt has 9999 tokens; the model takes 2047 at most")

    monkeypatch.setattr(type(parts.small), "_generate", fail)
    result = run("solve", CHAIN)
    assert result.exit_code == 2
    assert (
        result.stderr
        == "trim-graph: the run failed: the prompt has 9999 tokens; the model takes 2047 at most\n"
    )


def test_bad_files_exit_with_2(world, run):
    (world / "trim.yaml").write_text("small: {type: example}\nlrage: {type: example}\npolicy: [")
    result = run("solve", CHAIN, "--config", "trim.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("trim-graph: trim.yaml, line 3, column 10: not valid YAML")


def configured(world, extra="checkpoint: sqlite:runs.db\n"):
    (world / "trim.yaml").write_text(
        "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"
        f"policy: {{type: threshold, t: 0.5}}\n{extra}"
    )
    return ("--config", "trim.yaml")


def test_ended_and_unknown_threads_cannot_be_resumed(world, run):
    options = configured(world)
    assert run("solve", CHAIN, *options, "--thread", "a").exit_code == 0
    assert (world / "runs.db").exists()
    ended = run("solve", *options, "--thread", "a", "--resume")
    assert (ended.exit_code, "'a' has ended: nothing to resume" in ended.stderr) == (2, True)
    unknown = run("solve", *options, "--thread", "b", "--resume")
    assert (unknown.exit_code, "'b' has no run" in unknown.stderr) == (2, True)


def test_a_thread_is_named_where_none_is_given(world, run):
    assert run("solve", CHAIN, *configured(world)).stderr.startswith("thread ")
    assert run("solve", CHAIN, *configured(world, "checkpoint: memory\n")).stderr == ""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("pause", [0.0, 0.25, 0.8])
def test_ctrl_c_or_termination_and_resume(world, run, start, pause, sent):
    options = configured(world)
    process = start("solve", CHAIN, *options, "--thread", "a", delay=0.5)
    assert "34 + 12" in process.stdout.readline()
    time.sleep(pause)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent, err
    said = "trim-graph: interrupted; resume with: trim-graph solve --config trim.yaml --thread a --resume\n"
    assert err == said
    assert "answer" not in out
    resumed = run("solve", *options, "--thread", "a", "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole = run("solve", CHAIN, *configured(world, ""))
    without_seconds = [
        [
            re.sub(r", [\d.]+ s (slower|faster)$", "", line)
            for line in result.stdout.splitlines()
            if not line.startswith("seconds")
        ]
        for result in (resumed, whole)
    ]
    assert without_seconds[0] == without_seconds[1]


def test_nothing_but_the_end_is_missing(world, run):
    from trim_graph.cli.solve import load_parts
    from trim_graph.config import build_graph, load_config
    from trim_graph.storage.checkpoint import open_checkpointer

    options = configured(world)
    config = load_config("trim.yaml")
    place = {"configurable": {"thread_id": "a"}}
    with open_checkpointer(config.checkpoint) as checkpointer:
        graph = build_graph(config, checkpointer, parts=load_parts(config))
        graph.invoke({"messages": [("user", CHAIN)]}, place, interrupt_before=["finalize"], durability="sync")
    record = json.loads(run("solve", *options, "--thread", "a", "--resume", "--json").stdout)
    assert record["answer"] == "20"
    assert record["question"] == CHAIN
    assert [step["score"] for step in record["steps"]] == [0.9, 0.9, 0.9, 0.9, 0.9]


def test_ctrl_c_without_a_checkpoint(start, world):
    process = start("solve", CHAIN, delay=0.5)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "trim-graph: interrupted\n")


# A human, and accounts of users

ASKS = "checkpoint: sqlite:runs.db\nbudget: {large_calls: 1, on_exhausted: ask}\n"


def asks_at_every_step(world):
    options = configured(world, ASKS)
    file = world / "trim.yaml"
    file.write_text(file.read_text().replace("{type: threshold, t: 0.5}", "{type: random_rate, rate: 1}"))
    return options


def test_a_run_that_asks_says_how_it_is_answered(world, run):
    options = asks_at_every_step(world)
    asked = run("solve", CHAIN, *options, "--thread", "a")
    assert asked.exit_code == 0, asked.output
    said = asked.stdout
    assert (
        "asked   the limit on large_calls leaves no further call; the large model has used 1 call, " in said
    )
    assert "draft   (not scored) Step 2: 46 * 7 = 322, keep 1." in said
    command = "trim-graph solve --config trim.yaml --thread a --resume --answer '{more: {large_calls: 5}}'"
    assert f"answer  {command}" in said
    again = run("solve", *options, "--thread", "a", "--resume", "--json")
    assert json.loads(again.stdout)["asked"]["limit"] == "large_calls"
    by_hand = "{step: 'Step 2: 46 * 7 = 322, keep 22.'}"
    run("solve", *options, "--thread", "a", "--resume", "--answer", by_hand)
    done = run("solve", *options, "--thread", "a", "--resume", "--answer", "{continue_with: small}")
    assert "  2  human     -  by_hand    Step 2: 46 * 7 = 322, keep 22." in done.stdout
    assert "\nhuman   1 step\n" in done.stdout
    assert "answer  20" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--thread", "a", "--resume", "--answer", "{more: 5}"), "--answer is not valid: more: Input should"),
        (
            ("--thread", "a", "--resume", "--answer", "{continue_with"),
            "--answer '{continue_with' is neither a name",
        ),
        ((CHAIN, "--answer", "{continue_with: small}"), "--answer needs --resume"),
    ],
)
def test_an_answer_that_cannot_be_meant_is_refused(world, run, arguments, said):
    options = asks_at_every_step(world)
    assert run("solve", CHAIN, *options, "--thread", "a").exit_code == 0
    result = run("solve", *options, *arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    "asks", ["budget: {large_calls: 1, on_exhausted: ask}", "settings: {ask_below: 0.5}"]
)
def test_a_command_that_cannot_wait_asks_nobody(world, run, asks):
    result = run("solve", CHAIN, *configured(world, f"{asks}\n"))
    assert (result.exit_code, "a run cannot wait there" in result.stderr) == (2, True)


def test_a_user_has_one_quota_over_all_commands(world, run):
    limits = "ledger: sqlite:spend.db\nquotas: {user: {large_calls: 3}}\n"
    options = (*configured(world, limits), "--policy", "{type: random_rate, rate: 1}", "--user")
    counts = [
        json.loads(run("solve", CHAIN, *options, user, "--json").stdout)["summary"]["steps"]["large"]
        for user in ("ada", "ada", "eve")
    ]
    assert counts == [3, 0, 3]
    nobody = run("solve", CHAIN, *options[:-1])
    assert (nobody.exit_code, "does not name its user" in nobody.stderr) == (2, True)
    assert "add --user NAME" in nobody.stderr


def test_two_processes_are_not_at_one_thread(world, run, start):
    options = configured(world)
    process = start("solve", CHAIN, *options, "--thread", "a", delay=0.5)
    process.stdout.readline()
    second = run("solve", CHAIN, *options, "--thread", "a")
    assert second.exit_code == 2
    assert second.stderr == (
        "trim-graph: somebody else is at work on thread 'a': wait until it has ended, or name another\n"
    )
    assert run("solve", CHAIN, *options, "--thread", "b").exit_code == 0
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    resumed = run("solve", *options, "--thread", "a", "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_an_answer_to_nothing_is_refused_before_the_run_goes_on(world, run):
    from trim_graph.cli.solve import load_parts
    from trim_graph.config import build_graph, load_config
    from trim_graph.storage.checkpoint import open_checkpointer

    options = asks_at_every_step(world)
    config, place = load_config("trim.yaml"), {"configurable": {"thread_id": "a"}}
    with open_checkpointer(config.checkpoint) as checkpointer:
        graph = build_graph(config, checkpointer, parts=load_parts(config))
        graph.invoke(
            {"messages": [("user", CHAIN)]}, place, interrupt_before=["generate_step"], durability="sync"
        )
        before = graph.get_state(place).config
    reported = run("solve", *options, "--thread", "a", "--resume", "--answer", "{continue_with: stop}")
    assert reported.exit_code == 2
    assert reported.stderr.endswith(
        "the run of thread 'a' has asked nothing: leave out --answer to resume it\n"
    )
    with open_checkpointer(config.checkpoint) as checkpointer:
        assert build_graph(config, checkpointer, parts=load_parts(config)).get_state(place).config == before
