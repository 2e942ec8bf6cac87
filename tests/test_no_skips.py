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


@pytest.mark.parametrize(("no_skip", "code"), [("1", 1), ("", 0)])
@pytest.mark.parametrize("processes", [[], ["-n", "2", "--dist", "loadgroup"]])
def test_a_skipped_test_fails_the_run_where_the_environment_says_so(tmp_path, no_skip, code, processes):
    (tmp_path / "conftest.py").write_text(CONFTEST.format(here=str(Path(__file__).parent)))
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_runs(): pass\n\n@pytest.mark.skip(reason='no GPU')\ndef test_not(): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *processes, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "TRIM_NO_SKIP": no_skip},
    )
    assert done.returncode == code, done.stdout
    assert ("SKIPPED with TRIM_NO_SKIP=1" in done.stdout) == bool(no_skip)


@pytest.mark.parametrize(("listed", "code"), [("test_it.py::test_not", 0), ("test_it.py::test_other", 1)])
def test_one_that_the_list_names_does_not(tmp_path, listed, code):
    (tmp_path / "conftest.py").write_text(
        CONFTEST.format(here=str(Path(__file__).parent))
        + f"import no_skips\nno_skips._LIST = no_skips.Path({str(tmp_path / 'list.txt')!r})\n"
    )
    (tmp_path / "list.txt").write_text(f"# for a reason\n{listed}\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.xdist_group('a')\n@pytest.mark.skip\ndef test_not(): pass\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-n",
            "2",
            "--dist",
            "loadgroup",
            ".",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "TRIM_NO_SKIP": "1"},
    )
    assert done.returncode == code, done.stdout
