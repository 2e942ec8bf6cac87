"""The command line on models behind servers, in a process without torch."""

import os
import subprocess
import sys

from trim_graph.examples.arithmetic import problems

from .conftest import KEY, KEY_ENV


def test_solve_needs_no_torch(servers, tmp_path):
    problem = problems("standard", 1, seed=5)[0]
    (tmp_path / "trim.yaml").write_text(
        f"small: {{type: vllm, model: small, base_url: '{servers['small'].url}'}}\n"
        f"large: {{type: vllm, model: large, base_url: '{servers['large'].url}', api_key_env: {KEY_ENV}}}\n"
        f"scorer: {{type: vllm_prm, model: prm, base_url: '{servers['prm'].url}'}}\n"
        "policy: {type: threshold, t: 0.9}\n"
        "budget: {large_cost: 1}\n"
        "prices: {large: {input: 1, output: 1}}\n"
    )
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['trim-graph', 'solve', '--config', 'trim.yaml', {problem.question!r}]\n"
        "from trim_graph.cli import main\n"
        "main()"
    )
    environment = {**os.environ, KEY_ENV: KEY}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\\boxed" in done.stdout or problem.solution.split()[-1] in done.stdout
    assert KEY not in done.stdout + done.stderr
