"""The commands that a configuration makes, and what is refused before anything is started."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests import tiny_prms
from trim_graph.cli.app import app
from trim_graph.config import load_config
from trim_graph.errors import SettingsError
from trim_graph.examples.arithmetic import LARGE, PRM
from trim_graph.serving.plan import (
    LEAST,
    PROGRAM,
    WHOLE,
    divide_memory,
    find_launcher,
    plan_servers,
    weights_bytes,
)

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "vllm"


@pytest.fixture
def plan(write, tmp_path):
    return lambda **parts: plan_servers(load_config(write(**parts)), tmp_path)


def options(server):
    words = list(server.arguments)
    return {
        word: words[n + 1] if n + 1 < len(words) else "" for n, word in enumerate(words) if word[:2] == "--"
    }


def test_a_chat_model_is_served_with_the_settings_of_serve(plan, tmp_path):
    serve = {
        "path": "./weights",
        "gpu": [0, 1],
        "memory_share": 0.5,
        "dtype": "bfloat16",
        "max_model_len": 4096,
    }
    server = plan(large={"serve": {**serve, "args": ["--enforce-eager", "--seed=3"]}}).servers[1]
    assert server.command(PROGRAM)[:3] == ["vllm", "serve", str(tmp_path / "weights")]
    flags = options(server)
    assert flags["--served-model-name"] == "large"
    assert (flags["--host"], flags["--port"]) == ("127.0.0.1", "8002")
    assert (flags["--dtype"], flags["--max-model-len"]) == ("bfloat16", "4096")
    assert flags["--gpu-memory-utilization"] == "0.5"
    assert flags["--tensor-parallel-size"] == "2"
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details", "--enforce-eager"} <= flags.keys()
    assert server.arguments[-2:] == ("--enforce-eager", "--seed=3")
    assert server.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize("args", [[], ["--reasoning-parser", "qwen3"]])
def test_a_model_that_keeps_tokens_for_its_answer_has_its_reasoning_marked(plan, args):
    small, large = plan(
        large={"min_answer_tokens": 300, "serve": {"path": "./weights", "args": args}}
    ).servers[:2]
    assert "--reasoning-config" not in options(small)
    marks = options(large).get("--reasoning-config")
    wanted = {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}
    assert (json.loads(marks) if marks else None) == (None if args else wanted)


def test_reward_models_within_a_minimum_are_served_too(plan):
    entry = {"type": "vllm_prm", "model": "prm", "serve": {"example": "prm"}}
    scorers = [{"type": "turn_signals"}, {**entry, "base_url": "http://localhost:8003"}]
    planned = plan(scorer={"type": "minimum", "scorers": scorers})
    assert [server.name for server in planned.servers][2:] == ["scorer-2"]


GENERATIVE = {
    "type": "vllm_generative_prm",
    "model": "plus",
    "format": "math_shepherd",
    "base_url": "http://localhost:8003",
}


def test_a_reward_model_that_says_plus_or_minus_is_served_for_generation(plan):
    serve = {"path": "./weights", "gpu": 0, "max_model_len": 4096}
    server = plan(scorer={**GENERATIVE, "serve": serve}).servers[2]
    flags = options(server)
    assert server.name == "scorer"
    assert (flags["--served-model-name"], flags["--port"]) == ("plus", "8003")
    assert flags["--max-model-len"] == "4096"
    assert "--enable-prefix-caching" in flags
    assert not {"--runner", "--pooler-config", "--convert"} & flags.keys()


def test_the_parts_of_a_cascade_have_the_flags_of_their_own_type(plan):
    pooled = {"type": "vllm_prm", "model": "prm", "serve": {"example": "prm", "gpu": 1}}
    judged = {"type": "vllm", "model": "org/judge", "base_url": "http://localhost:8005", "serve": {"gpu": 1}}
    scorer = {
        "type": "cascade",
        "first": {
            "type": "minimum",
            "scorers": [
                {**pooled, "base_url": "http://localhost:8003"},
                {**GENERATIVE, "base_url": "http://localhost:8004", "serve": {"path": "./weights"}},
            ],
        },
        "second": {"type": "llm_judge", "model": judged},
    }
    made = plan(scorer=scorer).servers[2:]
    assert [(server.name, server.port) for server in made] == [
        ("scorer-1", 8003),
        ("scorer-2", 8004),
        ("scorer-3", 8005),
    ]
    assert ["--runner" in options(server) for server in made] == [True, False, False]
    assert made[2].weights == "org/judge"
    assert [options(server)["--gpu-memory-utilization"] for server in made] == ["0.45", "0.3", "0.45"]


@pytest.mark.parametrize("serve", [{}, {"serve": {"path": "./weights", "gpu": 0}}])
@pytest.mark.parametrize("part", ["small", "large"])
def test_a_judge_that_is_the_small_or_large_model_shares_its_server(part, serve, plan):
    port = {"small": 8001, "large": 8002}[part]
    model = {"type": "vllm", "model": part, "base_url": f"http://localhost:{port}", **serve}
    made = plan(scorer={"type": "llm_judge", "model": model})
    alone = plan()
    assert [(*server.names,) for server in made.servers if part in server.names] == [(part, "scorer")]
    assert [server.arguments for server in made.servers] == [server.arguments for server in alone.servers]


def test_a_part_without_serve_takes_the_server_of_a_later_part(plan):
    scorer = {
        **GENERATIVE,
        "model": "small",
        "base_url": "http://localhost:8001",
        "serve": {"path": "./weights"},
    }
    (server, _) = plan(small={"serve": {}}, scorer=scorer).servers
    assert server.names == ("small", "scorer")
    assert server.weights.endswith("weights")


def test_a_reward_model_knows_its_step_token(plan):
    entry = {
        "type": "vllm_prm",
        "model": "prm",
        "base_url": "http://localhost:8003",
        "serve": {"example": "prm"},
    }
    flags = options(plan(scorer=entry).servers[2])
    assert flags["--runner"] == "pooling"
    assert json.loads(flags["--pooler-config"]) == {"pooling_type": "STEP", "step_tag_id": 3}
    assert "--enable-prefix-caching" not in flags
    own = {"example": "prm", "args": ["--pooler-config", "{}"]}
    server = plan(scorer={**entry, "serve": own}).servers[2]
    assert server.arguments.count("--pooler-config") == 1


def test_the_reward_models_known_by_name_need_no_tokenizer(plan):
    entry = {"type": "vllm_prm", "model": "Qwen/Qwen2.5-Math-PRM-7B", "base_url": "http://localhost:8003"}
    flags = options(plan(scorer=entry).servers[2])
    assert flags["--runner"] == "pooling"
    assert json.loads(flags["--pooler-config"]) == {"pooling_type": "STEP", "step_tag_id": 151651}


LAST = {"pooling_type": "LAST", "task": "classify"}


def test_where_vllm_has_the_plugin_a_reward_model_is_served_with_the_prefix_cache(write, tmp_path):
    entry = {"type": "vllm_prm", "model": "Qwen/Qwen2.5-Math-PRM-7B", "base_url": "http://localhost:8003"}
    for scorer in (entry, {**entry, "model": "prm", "serve": {"example": "prm"}}):
        made = plan_servers(load_config(write(scorer=scorer)), tmp_path, plugin=True)
        reported = options(made.servers[2])
        assert json.loads(reported["--pooler-config"]) == LAST
        assert json.loads(reported["--hf-overrides"]) == {"architectures": ["TrimQwen2ForProcessReward"]}


def test_the_plugin_is_for_its_layout_only(write, tmp_path):
    """A classifier of another layout, in the format qwen, is served as before."""
    folder = tmp_path / "other"
    shutil.copytree(PRM, folder)
    tiny_prms.rewrite_config(folder, architectures=["Qwen2ForTokenClassification"])
    entry = {"type": "vllm_prm", "model": "prm", "base_url": "http://localhost:8003"}
    scorer = {**entry, "serve": {"path": str(folder)}}
    made = plan_servers(load_config(write(scorer=scorer)), tmp_path, plugin=True)
    assert json.loads(options(made.servers[2])["--pooler-config"])["pooling_type"] == "STEP"


def test_a_trained_scorer_is_served_with_the_prefix_cache_by_vllm_alone(plan, tmp_path):
    folder = tiny_prms.save_trim(tmp_path / "scorer")
    entry = {"type": "vllm_prm", "model": str(folder), "base_url": "http://localhost:8003"}
    reported = options(plan(scorer=entry).servers[2])
    assert reported["--convert"] == "classify"
    assert json.loads(reported["--pooler-config"]) == LAST
    assert "--hf-overrides" not in reported


def test_a_step_token_that_the_tokenizer_lacks(plan):
    entry = {"type": "vllm_prm", "model": "prm", "step_token": "<x>", "base_url": "http://localhost:8003"}
    with pytest.raises(
        SettingsError, match=r"scorer: the arguments for format qwen cannot be determined: .*<x>"
    ):
        plan(scorer={**entry, "serve": {"example": "prm"}})


def test_shares_are_per_gpu(plan):
    scorer = {"type": "vllm_prm", "model": "p", "base_url": "http://localhost:8003"}
    made = plan(
        small={"serve": {"example": "small", "gpu": 0}},
        large={"serve": {"example": "large", "gpu": 1}},
        scorer={**scorer, "serve": {"example": "prm", "gpu": 0, "memory_share": 0.3}},
    )
    assert [options(server)["--gpu-memory-utilization"] for server in made.servers] == ["0.6", "0.9", "0.3"]


def test_on_a_cpu_there_is_no_share_but_a_cache(plan):
    flags = options(plan(small={"serve": {"example": "small", "cpu": True}}).servers[0])
    assert "--gpu-memory-utilization" not in flags
    assert flags["--kv-cache-memory-bytes"] == str(4 * 2**30)


def test_on_a_cpu_the_prefix_cache_keeps_blocks_shorter_than_a_step(plan):
    assert "--block-size" not in options(plan(small={"serve": {"example": "small"}}).servers[0])
    serve = {"example": "small", "cpu": True}
    assert options(plan(small={"serve": serve}).servers[0])["--block-size"] == "32"
    own = plan(small={"serve": {**serve, "args": ["--block_size=64"]}}).servers[0]
    assert "--block-size" not in own.arguments


def test_parts_that_name_one_server_share_it(plan):
    same = {"model": "one", "base_url": "http://localhost:8001/v1"}
    (server,) = plan(small=same, large=same).servers
    assert server.names == ("small", "large")


def test_servers_elsewhere_are_left_alone(plan):
    made = plan(large={"base_url": "http://gpu.example:8002/v1"})
    assert [server.names for server in made.servers] == [("small",)]
    assert made.elsewhere == ("large: http://gpu.example:8002/v1 is another machine's: not started here",)


def test_replicas_are_left_alone(plan):
    made = plan(large={"base_url": ["http://localhost:8002/v1", "http://gpu.example:8002/v1"]})
    assert [server.names for server in made.servers] == [("small",)]
    assert made.elsewhere == ("large: base_url is a list of replicas, which up does not start",)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"large": {"base_url": "http://127.0.0.1:8001"}}, "small and large both have port 8001"),
        ({"large": {"base_url": "https://localhost:8002"}}, "plain http servers"),
        ({"large": {"base_url": "http://localhost:8002/vllm/v1"}}, "has a path, as a gateway does"),
        ({"large": {"serve": {}}}, "model='large' is neither a folder nor a hub id"),
        ({"large": {"serve": {"path": "./none"}}}, "no such folder"),
        (
            {"scorer": {**GENERATIVE, "model": "small", "base_url": "http://localhost:8002"}},
            "large and scorer both have port 8002 .* not the same model",
        ),
        (
            {"scorer": {"type": "vllm_prm", "model": "large", "base_url": "http://localhost:8002"}},
            "a server of one model either writes text or pools scores",
        ),
        (
            {
                "scorer": {
                    **GENERATIVE,
                    "model": "large",
                    "base_url": "http://localhost:8002",
                    "serve": {"path": "./weights", "gpu": 1},
                }
            },
            "large and scorer both have port 8002 .* the same serve",
        ),
        (
            {name: {"serve": {"path": "a/b", "memory_share": 0.6}} for name in ("small", "large")},
            "make 1.20 of GPU 0",
        ),
    ],
)
def test_what_cannot_be_started_is_refused(parts, message, plan):
    with pytest.raises(SettingsError, match=message):
        plan(**parts)


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        ({"gpus": 0}, "large.serve.gpus: unknown key, did you mean gpu?"),
        ({"memory_share": 1.5}, "large.serve.memory_share: is 1.5; it should be less than or equal to 0.95"),
        ({"gpu": -1}, "large.serve.gpu"),
        ({"gpu": [0, 0]}, "gpu names one GPU twice"),
        ({"gpu": 0, "cpu": True}, "gpu and cpu contradict each other"),
        ({"path": "x", "example": "small"}, "path and example both name the weights"),
        ({"example": "tiny"}, "large.serve.example"),
        ({"args": ["--port", "3"]}, "large.serve.args: holds --port, which base_url says"),
        (
            {"args": ["--max_model_len=3"]},
            "holds --max-model-len, which max_model_len in serve says",
        ),
        ({"args": ["--api-key", "sk-1"]}, "which every user of the machine could read"),
        ({"args": ["--api_key=sk-1"]}, "name that in api_key_env"),
        ({"args": [3]}, "large.serve.args"),
    ],
)
def test_errors_in_serve_name_the_key(serve, message, write):
    with pytest.raises(SettingsError) as error:
        load_config(write(large={"serve": serve}))
    assert message in str(error.value)
    assert "sk-1" not in str(error.value)


def test_adapters_do_not_see_serve(write):
    config = load_config(write(small={"serve": {"example": "small"}}))
    assert config.small.build("small").model == "small"
    assert config.small.serve.weights.endswith("weights/small")


def test_weights_need_not_be_here_to_ask_a_server(write, tmp_path):
    config = load_config(write(large={"serve": {"path": "./not-here"}}))
    assert config.large.serve.path == str(tmp_path / "not-here")


def test_the_key_stays_in_the_environment(plan, monkeypatch):
    monkeypatch.setenv("LARGE_KEY", "sk-secret")
    small, large = plan(small={"api_key_env": None}, large={"api_key_env": "LARGE_KEY"}).servers
    assert large.full_environment()["VLLM_API_KEY"] == "sk-secret"
    assert small.full_environment()["VLLM_API_KEY"] == ""
    for server in (small, large):
        assert "sk-secret" not in " ".join(
            [repr(server), *server.command(PROGRAM), server.shell_line(PROGRAM)]
        )
    assert 'VLLM_API_KEY="$LARGE_KEY" vllm serve' in large.shell_line(PROGRAM)


def test_shell_lines_are_quoted(plan):
    args = ["--chat-template", "./my template.jinja", "--override", '{"a": "$b"}']
    (server, _) = plan(small={"serve": {"example": "large", "args": args}}).servers
    assert shlex.split(server.shell_line(PROGRAM)) == ["vllm", "serve", str(LARGE), *server.arguments]
    assert str(PRM) not in server.shell_line(PROGRAM)


def test_a_python_that_is_none_or_has_no_vllm(tmp_path, fake_python, monkeypatch):
    with pytest.raises(SettingsError, match="there is no such program"):
        find_launcher(str(tmp_path / "none"))
    (tmp_path / "data").write_bytes(b"\x00")
    (tmp_path / "data").chmod(0o755)
    with pytest.raises(SettingsError, match="data does not run: "):
        find_launcher(str(tmp_path / "data"))
    assert find_launcher(str(fake_python)).command[1:] == ("-m", "vllm.entrypoints.openai.api_server")
    monkeypatch.setenv("FAKE_HAS_VLLM", "no")
    with pytest.raises(SettingsError, match="has no vLLM"):
        find_launcher(str(fake_python))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="pip install vllm"):
        find_launcher(None)


def test_the_plugin_is_looked_for_in_the_python_that_runs_vllm(tmp_path, fake_python, monkeypatch):
    assert not find_launcher(str(fake_python)).plugin
    monkeypatch.setenv("FAKE_PLUGIN", "plugin")
    assert find_launcher(str(fake_python)).plugin
    program = tmp_path / "vllm"
    program.write_text(f"#!{fake_python}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_launcher(None) == replace(PROGRAM, plugin=True)
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert not find_launcher(None).plugin
    assert not find_launcher(str(fake_python)).plugin
    monkeypatch.setenv("VLLM_PLUGINS", "another,trim_graph")
    assert find_launcher(str(fake_python)).plugin


@pytest.mark.parametrize("content", ["", "#!/nowhere/python\n", "#!/bin/false\n", "\x7fELF"])
def test_a_program_that_is_no_script_of_a_python_has_no_plugin(tmp_path, monkeypatch, content):
    program = tmp_path / "vllm"
    program.write_text(content)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_launcher(None) == PROGRAM


# Shares of a GPU: never more than there is, whatever is given


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5),
        ("Qwen/Qwen2.5-Math-PRM-7B", 7),
        ("mistralai/Mixtral-8x7B-v0.1", 56),
        ("Qwen/Qwen3-30B-A3B", 30),
        ("org/some-model", None),
        ("org/Qwen2.5-base", None),
        ("7B/model", None),
    ],
)
def test_a_name_may_contain_the_size(name, billions):
    assert weights_bytes(name) == (None if billions is None else billions * 2e9)


def test_files_determine_the_size_better(tmp_path):
    folder = tmp_path / "model-7B"
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"1" * 30)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"1" * 12)
    assert weights_bytes(str(folder)) == 42


def test_shares_go_by_size_but_nobody_gets_too_little():
    shares = divide_memory(dict.fromkeys("abc"), {"a": 3, "b": 15, "c": 15}, 0)
    assert shares == {"a": 0.1, "b": 0.4, "c": 0.4}
    assert divide_memory({"a": 0.5, "b": None}, {"b": 7}, 0) == {"a": 0.5, "b": 0.4}
    assert divide_memory(dict.fromkeys("ab"), {"a": 3, "b": None}, 0) == {"a": 0.45, "b": 0.45}


def test_shares_that_do_not_go_together_are_refused():
    with pytest.raises(SettingsError, match=r"small 0.6, large 0.5 make 1.10 of GPU 3"):
        divide_memory({"small": 0.6, "large": 0.5}, {}, 3)
    with pytest.raises(SettingsError, match=r"small 0.9 leave nothing of GPU 0 for large"):
        divide_memory({"small": 0.9, "large": None}, {}, 0)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.tuples(st.none() | st.floats(0.01, 0.4), st.none() | st.integers(1, 10**12)),
        min_size=1,
        max_size=9,
    )
)
def test_shares_never_exceed_the_gpu(entries):
    given_, sizes = {n: e[0] for n, e in entries.items()}, {n: e[1] for n, e in entries.items()}
    try:
        shares = divide_memory(given_, sizes, 0)
    except SettingsError:
        assert math.fsum(share or 0.01 for share in given_.values()) > WHOLE - 0.011 * len(given_)
        return
    assert shares.keys() == entries.keys()
    fixed = {name: share for name, share in given_.items() if share is not None}
    assert all(shares[name] == share for name, share in fixed.items())
    assert math.fsum(shares.values()) <= max(WHOLE, math.fsum(fixed.values())) + 1e-9
    left = [share for name, share in shares.items() if name not in fixed]
    room = (WHOLE - math.fsum(fixed.values())) / len(left) if left else 0
    assert all(share >= math.floor(min(LEAST, room) * 100) / 100 > 0 for share in left) or room < 0.02


# The commands that `trim-graph up --print` shows


PRINTED = {
    "arithmetic_cpu": ["--kv-cache-memory-bytes", "weights/prm", '"step_tag_id": 3'],
    "qwen_one_gpu": [
        "Qwen2.5-Math-PRM-7B",
        '"step_tag_id": 151651',
        "CUDA_VISIBLE_DEVICES=0",
        "--max-model-len",
    ],
    "qwen_two_gpus": ["CUDA_VISIBLE_DEVICES=1", "--gpu-memory-utilization 0.9", "Qwen2.5-7B-Instruct"],
    "qwen_large_elsewhere": ["# large: http://large-model.example:8002/v1 is another machine's"],
}


def test_every_example_is_here():
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == set(PRINTED)


def test_the_python_of_the_readme_has_the_models_of_the_example():
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES / "README.md").read_text("utf-8"), re.DOTALL)
    names = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    config = load_config(EXAMPLES / "arithmetic_cpu.yaml")
    for part in ("small", "large", "scorer"):
        given, configured = names[part], getattr(config, part)
        assert (given.model, given.base_url) == (configured.model, configured.base_url)
    settings = config.settings.model_dump(exclude_unset=True) | {"large_tokens": config.budget.large_tokens}
    assert all(f"{name}={value}" in blocks[0] for name, value in settings.items())


@pytest.mark.parametrize("name", PRINTED)
def test_print_shows_commands_that_a_shell_understands(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "GPU=$CUDA_VISIBLE_DEVICES"\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = CliRunner().invoke(app, ["up", "--config", str(EXAMPLES / f"{name}.yaml"), "--print"])
    assert done.exit_code == 0, done.output
    assert all(piece in done.stdout for piece in PRINTED[name]), done.stdout
    lines = [line for line in done.stdout.splitlines() if " serve " in line]
    total = {}
    for line in lines:
        words = shlex.split(line)
        reported = dict(pairwise(words))
        gpu = next((word for word in words if word.startswith("CUDA_VISIBLE")), "")
        total[gpu] = total.get(gpu, 0) + float(reported.get("--gpu-memory-utilization", 0))
    assert max(total.values()) <= 0.9 + 1e-9
    ran = subprocess.run(["sh", "-e"], input=done.stdout, capture_output=True, text=True, check=True)
    said = ran.stdout.splitlines()
    assert said.count("serve") == len(lines)
    for word in shlex.split(lines[-1]):
        assert "=" in word or word == "vllm" or word in said


@pytest.mark.parametrize(("plugin", "pooling"), [("", "STEP"), ("plugin", "LAST")])
def test_print_has_the_flags_that_the_vllm_named_can_take(plugin, pooling, fake_python, monkeypatch):
    monkeypatch.setenv("FAKE_PLUGIN", plugin)
    example = str(EXAMPLES / "arithmetic_cpu.yaml")
    done = CliRunner().invoke(app, ["up", "--config", example, "--print", "--python", str(fake_python)])
    assert done.exit_code == 0, done.output
    assert f'"pooling_type": "{pooling}"' in done.stdout
    assert ("TrimQwen2ForProcessReward" in done.stdout) is bool(plugin)
