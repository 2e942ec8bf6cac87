"""Small models of the formats beside Qwen's, with random weights."""

import pytest

from tests import tiny_prms

NAMES = ["math_shepherd", "skywork", "rlhflow"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {
        name: getattr(tiny_prms, f"save_{name}")(tmp_path_factory.mktemp("prms") / name) for name in NAMES
    }


@pytest.fixture(params=NAMES)
def name(request):
    return request.param
