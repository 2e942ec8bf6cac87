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
def test_a_skipped_test_fails_the_run_where_the_environment_says_so(tmp_path, no_skip, code):
    (tmp_path / "conftest.py").write_text(CONFTEST.format(here=str(Path(__file__).parent)))
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_runs(): pass\n\n@pytest.mark.skip(reason='no GPU')\ndef test_not(): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "TRIM_NO_SKIP": no_skip},
    )
    assert done.returncode == code, done.stdout
    assert ("SKIPPED with TRIM_NO_SKIP=1" in done.stdout) == bool(no_skip)
