"""The commands that a configuration makes, and what is refused before anything is started."""

import json
import os
import shlex
import shutil
from dataclasses import replace

import pytest

from tests import tiny_prms
from trim_graph.config import load_config
from trim_graph.errors import SettingsError
from trim_graph.examples.arithmetic import LARGE, PRM
from trim_graph.serving.plan import PROGRAM, find_launcher, plan_servers


@pytest.fixture
def plan(write, tmp_path):
    return lambda **parts: plan_servers(load_config(write(**parts)), tmp_path)


def options(server):
    words = list(server.arguments)
    return {
        word: words[n + 1] if n + 1 < len(words) else "" for n, word in enumerate(words) if word[:2] == "--"
    }


def test_a_chat_model(plan, tmp_path):
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
