import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import sys
sys.path.insert(0, {here!r})
from no_skips import register as pytest_configure
"""


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two"])
@pytest.mark.parametrize(("no_skip", "code"), [("1", 1), ("", 0)])
def test_a_skipped_test_fails_the_run_where_the_environment_says_so(tmp_path, no_skip, code, processes):
    (tmp_path / "conftest.py").write_text(CONFTEST.format(here=str(Path(__file__).parent)))
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_runs(): pass\n\n@pytest.mark.skip(reason='no GPU')\ndef test_not(): pass\n"
    )
    (tmp_path / "test_file.py").write_text(
        "import pytest\n\npytest.skip('no such system', allow_module_level=True)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "xdist",
            *processes,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "TRIM_NO_SKIP": no_skip, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == code, done.stdout
    for skipped in ("test_it.py::test_not", "test_file.py"):
        assert done.stdout.count(f"SKIPPED with TRIM_NO_SKIP=1, not in allowed_skips.txt: {skipped}") == bool(
            no_skip
        )
