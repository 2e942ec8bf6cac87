"""Tests of the command line as a whole: version, help, what is loaded, errors, and signals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from trim_graph import __version__
from trim_graph.cli.app import EXAMPLE_CONFIG, app
from trim_graph.config import EXAMPLE

ARITHMETIC = Path(__file__).parents[2] / "examples/vllm/arithmetic_cpu.yaml"
CHAIN = (
    "Start with 34. Step 1: add 12. Step 2: add 1. Step 3: add 2. Step 4: add 3. "
    "Always keep only the last two digits. What is the result?"
)


def test_the_option_version_prints_the_version(run):
    assert run("--version").stdout == f"trim-graph {__version__}\n"


def test_help_shows_the_documented_example(run):
    shown = run("solve", "--help").stdout
    assert "--config" in shown
    for line in EXAMPLE.splitlines():
        assert f"  {line}\n" in EXAMPLE_CONFIG
        assert f"    {line}\n" in shown


def commands(group=None, path=()):
    """Yields the path of each command and group."""
    group = group or get_command(app)
    yield path
    for name, one in getattr(group, "commands", {}).items():
        yield from commands(one, (*path, name))


@pytest.mark.parametrize("path", list(commands()))
def test_help_of_each_command_shows_no_mark_of_formatting(run, path):
    shown = run(*path, "--help").stdout
    assert shown.startswith("Usage: trim-graph")
    assert not [line for line in shown.splitlines() if "\b" in line or "\\" in line]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['trim-graph', 'solve', '--help']\n"
        "from trim_graph.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'transformers', 'langgraph', 'langchain_core', 'numpy') "
        "if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_module_and_script_report_errors_alike(tmp_path):
    script = Path(sys.executable).with_name("trim-graph")
    for command in ([sys.executable, "-m", "trim_graph.cli"], [str(script)]):
        done = subprocess.run(
            [*command, "demo", "-n", "0"], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stderr) == (2, "trim-graph: -n is 0: choose 1 or more\n")


@pytest.mark.parametrize(
    ("missing", "arguments", "line"),
    [
        ("typer", ["--help"], 'typer is not installed: pip install "trim-graph[cli]"'),
        ("rich", ["--version"], 'rich is not installed: pip install "trim-graph[cli]"'),
        ("yaml", ["solve", CHAIN], 'yaml is not installed: pip install "trim-graph[cli]"'),
        ("numpy", ["demo"], 'numpy is not installed: pip install "trim-graph[cli,local]"'),
        (
            "torch",
            ["solve", CHAIN, "--threshold", "1"],
            'torch is not installed: pip install "trim-graph[cli,local]"',
        ),
        (
            "transformers",
            ["demo", "--threshold", "1"],
            'transformers is not installed: pip install "trim-graph[cli,local]"',
        ),
        (
            "jinja2",
            ["up", "--print", "--config", str(ARITHMETIC)],
            'jinja2 is not installed: pip install "trim-graph[cli,vllm]"',
        ),
    ],
)
def test_a_missing_package_is_reported_with_the_extra_to_install(start, missing, arguments, line):
    process = start(*arguments, missing=[missing], in_world=False)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (2, "", f"trim-graph: {line}\n")


def test_hosted_models_need_no_load(tmp_path):
    """No call is made before the question's own, whose first step reports the server that is not there."""
    place = "kwargs: {base_url: 'http://127.0.0.1:9/v1', max_retries: 0}"
    hosted = f"{{type: langchain, model: 'openai:m', {place}}}"
    (tmp_path / "trim.yaml").write_text(
        f"small: {hosted}\nlarge: {hosted}\nscorer: {{type: llm_judge, model: {hosted}}}\n"
        "policy: {type: threshold, t: 0.7}\nsettings: {on_small_error: large, on_large_error: accept}\n"
    )
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['trim-graph', 'solve', '--config', 'trim.yaml', '--json', 'What is 1 + 1?']\n"
        "from trim_graph.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_API_KEY": "sk-very-secret"},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["summary"]["stopped"] == "failed", done.stderr
    assert "Connection error" in done.stdout
    assert "sk-very-secret" not in done.stdout + done.stderr


def test_models_on_servers_need_neither_torch_nor_a_load(tmp_path):
    """Asked for its models, a configuration of servers says which server is not there."""
    (tmp_path / "trim.yaml").write_text(
        "small: {type: vllm, model: m, base_url: 'http://127.0.0.1:9', max_retries: 0}\n"
        "large: {type: vllm, model: m, base_url: 'http://127.0.0.1:9', max_retries: 0}\n"
        "policy: small_only\n"
    )
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['trim-graph', 'solve', '--config', 'trim.yaml', 'What is 1 + 1?']\n"
        "from trim_graph.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "trim-graph: small: no server answers at http://127.0.0.1:9" in done.stderr


def test_sigterm_ends_a_job_in_the_background_of_a_shell(tmp_path):
    """There Ctrl-C is ignored, and so it is in what the shell starts."""
    code = (
        "import time\nfrom trim_graph.cli.terminal import failures_reported\n"
        "with failures_reported():\n    print('begun', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout.readline() == b"begun\n"
    process.terminate()
    _, reported = process.communicate(timeout=30)
    assert reported.startswith(b"trim-graph: interrupted\n")
    assert b"Exit: 143" in reported  # typer makes an exit code of it


@pytest.mark.parametrize("code", [130, 143, 2])
def test_an_interrupt_waits_for_no_thread_within_a_model(code):
    program = f"""
import atexit, sys, trim_graph.cli
from trim_graph.cli import app
class Kept:
    def __del__(self): print("the interpreter ends", flush=True)
kept = Kept()
def end(**named):
    atexit.register(print, "what is registered is done")
    sys.exit({code})
app.app = end
trim_graph.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    reported = ["what is registered is done", "the interpreter ends"]
    assert done.stdout.splitlines() == (reported if code == 2 else reported[:1])
