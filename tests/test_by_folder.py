import os
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import sys
sys.path.insert(0, {here!r})

def pytest_xdist_make_scheduler(config, log):
    from by_folder import ByFolder
    return ByFolder(config, log)
"""
TEST = """
import os
import time

def test_it(request):
    time.sleep(0.05)
    with open({reported!r}, "a") as out:
        out.write(f"{{os.getpid()}} {{request.node.nodeid.partition('::')[0]}}\\n")
"""


def test_a_folder_is_of_one_process_and_a_file_beside_them_too(tmp_path):
    reported = tmp_path / "reported"
    (tmp_path / "conftest.py").write_text(CONFTEST.format(here=str(Path(__file__).parent)))
    files = ["tests/one/test_a.py", "tests/one/test_b.py", "tests/two/deep/test_a.py", "tests/two/test_b.py"]
    files += ["tests/test_a.py", "tests/test_b.py"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(TEST.format(reported=str(reported)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += ["-p", "xdist", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder", str(tmp_path)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
    ran = [line.split() for line in reported.read_text().splitlines()]
    assert sorted(name for _, name in ran) == sorted(files)
    for folder in ("tests/one/", "tests/two/"):
        assert len({process for process, name in ran if name.startswith(folder)}) == 1
    assert len({process for process, _ in ran}) == 2
