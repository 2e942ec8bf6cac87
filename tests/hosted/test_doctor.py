"""The doctor examines a hosted model as a run has it: asked by prompt."""

import json
import os
import subprocess
import sys

import yaml

from trim_graph.examples.hosted.scripted_server import Answer


def test_a_hosted_set_up_has_no_fault(serve, tmp_path):
    server = serve(lambda body: Answer("[[STEP]]\nStep 1: 2 + 2 = 4.\n[[DONE]]"))
    kwargs = {"base_url": server.url, "max_retries": 0, "logprobs": True}
    models = {
        part: {"type": "langchain", "model": f"openai:{part}", "kwargs": kwargs}
        for part in ("small", "large")
    }
    config = {**models, "scorer": {"type": "token_probability"}, "policy": {"type": "threshold", "t": 0.5}}
    (tmp_path / "trim.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "trim_graph.cli", "doctor", "--config", "trim.yaml", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OPENAI_API_KEY": "sk-none"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(one["part"], one["check"]): one for one in json.loads(done.stdout)["checks"]}
    assert "asked by prompt" in found["large", "continuation"]["found"]
    assert ("large", "stop string") not in found
    assert found["small", "usage"]["status"] == "ok"
    assert "sk-none" not in done.stdout + done.stderr
