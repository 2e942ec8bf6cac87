"""No text of a model, a server, a dataset, a file's name or an error acts on the terminal of any command."""

import io
import json
import logging
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table

from trim_graph.cli.app import app
from trim_graph.cli.common import Console, live, status, text_column
from trim_graph.cli.terminal import GuardedStream, guarded, visible
from trim_graph.config import Parts
from trim_graph.doctor.subjects import Finding, Report
from trim_graph.errors import ModelServerError
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

POISON = "\x1b]0;EVIL\x07\x1b[2J\x1b]8;;http://evil\x1b\\\r\x08\x9b31m\x7f\u202e\u2066[red]mark[/red]:boom:"
SHOWN = r"\x1b]0;EVIL\x07\x1b[2J\x1b]8;;http://evil\x1b\\x0d\x08\x9b31m\x7f\u202e\u2066[red]mark[/red]:boom:"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CONFIG = """
small: {type: vllm, model: m, api_key_env: null}
large: {type: vllm, model: m, api_key_env: null}
scorer: {type: vllm_prm, model: m, api_key_env: null}
policy: {type: threshold, t: 0.5}
settings: {on_large_error: accept}
checkpoint: sqlite:runs.db
"""


@given(st.text())
def test_nothing_acts_and_all_else_stays(text):
    shown = visible(text)
    assert not ACTS.search(shown)
    shown.encode()
    assert visible(shown) == shown
    if not ACTS.search(text) and text.isprintable():
        assert shown == text


def test_control_characters_are_shown():
    assert visible("a\tb\nc\r\nd\x1b[0m\x85\u2069é\ud83d") == "a\tb\nc\nd\\x1b[0m\\x85\\u2069é\\ud83d"
    assert visible(POISON) == SHOWN


def test_a_guarded_stream_is_a_stream():
    under = io.StringIO()
    stream = GuardedStream(under)
    print("a", POISON, file=stream, flush=True)
    stream.writelines(["\x1b", "b"])
    assert under.getvalue() == f"a {SHOWN}\n\\x1bb"
    assert not stream.isatty()
    with pytest.raises(TypeError):
        stream.write(b"bytes")


def failing(messages):
    raise ModelServerError(f"the server answered 400: {POISON}", 400)


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    """Models that write poison, a large one that fails with it, a question and a dataset that hold it."""
    monkeypatch.chdir(tmp_path)
    parts = Parts(
        ScriptedChatModel(script=[f"step {POISON}", f"answer {POISON} \\boxed{{{POISON}}}"] * 9),
        ScriptedChatModel(script=failing),
        ScriptedScorer(default=0.1),
    )
    for command in ("solve", "eval", "collect", "calibrate"):
        monkeypatch.setattr(f"trim_graph.cli.{command}.load_parts", lambda config, **_: parts)
    (tmp_path / "trim.yaml").write_text(CONFIG)
    row = {"question": f"what {POISON}", "answer": "3", "level": f"easy {POISON}"}
    (tmp_path / f"rows{POISON.replace('/', '')}.jsonl").write_text((json.dumps(row) + "\n") * 3)
    return tmp_path


def clean(done):
    assert not isinstance(done.exception, Exception), done.exception
    assert not ACTS.search(done.stdout_bytes.decode())
    assert not ACTS.search(done.stderr_bytes.decode())
    return done.stdout + done.stderr


def dataset(folder):
    return json.dumps({"type": "file", "path": next(folder.glob("rows*.jsonl")).name, "grader": "exact"})


def test_solve_prints_hostile_text_harmlessly(run, poisoned):
    reported = clean(run("solve", "--config", "trim.yaml", f"what {POISON}"))
    assert f"step {SHOWN}" in reported.replace("\n", "")
    assert "the large model failed" in reported
    assert SHOWN in reported
    assert json.loads(run("solve", "--config", "trim.yaml", "--json", f"what {POISON}").stdout)["question"]


def test_solve_that_asks_a_human(run, poisoned):
    config = CONFIG.replace("settings: {", "settings: {ask_below: 0.9, ")
    Path("trim.yaml").write_text(config)
    reported = clean(run("solve", "--config", "trim.yaml", "--thread", POISON, "what"))
    assert "score 0.10" in reported
    assert SHOWN in reported


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "--out", "out", "--baselines", "none", "--policy", "small_only"),
        (
            "eval",
            "--out",
            "out",
            "--baselines",
            "none",
            "--policy",
            f"mine{POISON}={{type: threshold, t: 0.3}}",
        ),
        ("eval", "--out", f"out{POISON.replace('/', '')}", "--baselines", "kind", "--policy", "small_only"),
        ("collect", "--out", "traces.jsonl"),
        ("calibrate", "--large-share", "0.5"),
    ],
)
def test_questions_answers_and_names_of_a_dataset(run, poisoned, command):
    name, *options = command
    done = run(name, "--config", "trim.yaml", "--dataset", dataset(poisoned), *options)
    assert clean(done)


def test_doctor_prints_hostile_text_harmlessly(run, poisoned, monkeypatch):
    found = Report((Finding.error(POISON, POISON), Finding.warning(POISON, POISON)))
    monkeypatch.setattr("trim_graph.cli.doctor._examined", lambda *_: found)
    reported = clean(run("doctor", "--config", "trim.yaml"))
    assert reported.count("[red]mark[/red]:boom:") >= 4
    report = json.loads(run("doctor", "--config", "trim.yaml", "--json").stdout)
    assert report["checks"][0]["found"] == POISON


def every_command():
    group = typer.main.get_command(app)
    pending = [((), group)]
    while pending:
        path, command = pending.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path, command
        else:
            pending += [((*path, name), one) for name, one in inner.items()]


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in every_command()]
)
def test_names_and_values_that_a_command_refuses(run, tmp_path, monkeypatch, path, command):
    """Every option in turn, and then every argument: a file, a name, a number that is none."""
    monkeypatch.chdir(tmp_path)
    texts = [one for one in command.params if not getattr(one, "is_flag", False) and one.name != "help"]
    for option in (one for one in texts if one.param_type_name == "option"):
        clean(run(*path, option.opts[0], POISON))
    for value in (POISON, "-" + POISON, "--" + POISON):
        clean(run(*path, *[value for _ in texts[:1]]))
    clean(run(POISON, *path))


def test_a_file_that_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"a{POISON.replace('/', '')}.yaml"
    file.write_text(json.dumps({POISON: 1, "small": POISON, "large": {"type": POISON}, "policy": POISON}))
    assert SHOWN.replace("/", "") in clean(run("solve", "--config", file, "x"))


def test_whatever_a_library_prints_within_a_command(run, monkeypatch):
    def noisy(problem, config):
        print(POISON)
        print(POISON, file=sys.stderr)
        logging.getLogger("some.library").addHandler(handler := logging.StreamHandler())
        logging.getLogger("some.library").warning(POISON)
        logging.getLogger("some.library").removeHandler(handler)
        raise ModelServerError(POISON)

    monkeypatch.setattr("trim_graph.cli.solve.readable", noisy)
    reported = clean(run("solve", "x"))
    assert reported.count(SHOWN) == 4


def test_a_traceback_and_what_is_printed_at_the_end():
    code = (
        "import atexit, logging, warnings, trim_graph.cli\n"
        "from trim_graph.cli import app\n"
        "def end(**_):\n"
        f"    warnings.warn({POISON!r})\n"
        f"    logging.getLogger('some.library').warning({POISON!r})\n"
        f"    raise RuntimeError({POISON!r})\n"
        "app.app = end\n"
        f"atexit.register(print, {POISON!r})\n"
        "trim_graph.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    for said in ("RuntimeError: ", "UserWarning: ", "\n"):
        assert f"{said}{SHOWN}" in done.stderr.decode()
    assert done.stdout.decode() == f"{SHOWN}\n"
    assert not ACTS.search((done.stdout + done.stderr).decode())


@contextmanager
def terminal():
    """Streams that pass for a terminal."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out, err = Terminal(), Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with guarded():
            yield out, err
            assert sys.stdout.unguarded is out, "rich has given back what it took"


OWN = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")
"""What rich writes itself: styles and moves, no titles, no links."""


def others(stream):
    return OWN.sub("", stream.getvalue()).replace("\r", "")


def test_a_console_on_a_terminal_has_styles_of_its_own_only():
    with terminal() as (out, _):
        console = Console(width=400)
        console.print(POISON, style="bold")
        table = Table(title=POISON)
        table.add_column(POISON)
        table.add_row(POISON)
        console.print(table)
    assert "\x1b[1m" in out.getvalue()
    assert not ACTS.search(others(out))
    assert others(out).count(SHOWN) == 4
    assert not re.search("\x1b\\[31m|\x1b\\[2J", out.getvalue())


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_nor_does_what_is_printed_while_a_display_moves(stream):
    """Rich reads escape sequences out of what is printed meanwhile, and makes links and colours of it."""
    with terminal() as (_, err):
        with live(
            Progress(text_column("{task.description}"), console=Console(stderr=True, width=400))
        ) as bar:
            bar.add_task(POISON)
            print(f"{POISON}\x1b[31mred", file=getattr(sys, stream), flush=True)
        with status(POISON) as report:
            report(f"next {POISON}")
    assert not ACTS.search(others(err))
    assert "\x1b[31m" not in err.getvalue()
    assert "\x1b]8" not in err.getvalue()
    assert others(err).count(f"{SHOWN}\\x1b[31mred") == 1
    assert "mark" in others(err)
