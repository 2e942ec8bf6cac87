"""The example: its README's commands run as printed, but for the port and the installation."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.processes import wait_until

FOLDER = Path(__file__).parent.parent.parent / "examples" / "serve"
README = (FOLDER / "README.md").read_text("utf-8")
PROGRAMS = ("bash", "curl", "openssl")


@pytest.mark.skipif(None in map(shutil.which, PROGRAMS), reason=f"needs {', '.join(PROGRAMS)}")
def test_the_readme_runs_as_printed(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shutil.copy(FOLDER / "trim.yaml", tmp_path)
    readme = README.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    begin, ask, look = re.findall(r"^```bash\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    (python,) = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    install, keys, serve = begin.strip().splitlines()
    assert install.startswith("pip install")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def shell(script):
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell(keys)
    with (tmp_path / "log").open("w") as log:
        command = ["bash", "-c", f"exec {serve} --port {port}"]
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: _is_up(server, port, tmp_path / "log"), 240)
            export = ask.strip().splitlines()[0]
            assert '"content":"Step 1: 34 + 12 = 46.' in shell(ask)
            (tmp_path / "ask.py").write_text(python)
            said = shell(f"{export}\npython ask.py").splitlines()
            looked = shell(look)
        finally:
            server.terminate()
            server.wait(60)
    assert [line.split()[0] for line in said[:4]] == ["trim", "trim:0.2", "small", "large"]
    assert "'large': 0" in said[2]
    assert "'small': 0" in said[3]
    assert any(line.endswith("tokens of both models") for line in said)
    assert "'large': 0" in said[-1]
    assert 'trim_steps_total{writer="small"}' in looked
    assert '"questions_under_way":0' in looked
    assert server.returncode == 0


def _is_up(server, port, log):
    assert server.poll() is None, log.read_text()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
