"""How far a reader must hop, held at the goals of `tests.benchmarks.structure`, and where tests are found."""

import os
from pathlib import Path

import pytest

from tests.benchmarks.structure import ROWS, circles, sizes, traced_question

ROOT = Path(__file__).parents[1]

COVERED_ELSEWHERE = {
    # What needs a real server, database, cluster or engine is tested where these are started.
    "adapters/vllm/plugin_model.py": "tests/vllm/test_formats.py",
    "trim_graph/budget/postgres.py": "tests/postgres/test_ledger.py",
    "trim_graph/cli/up.py": "tests/serving/test_launch.py",
    "trim_graph/distributed.py": "tests/distributed/test_ray.py",
    "trim_graph/server/questions.py": "tests/server/test_app.py",
    "trim_graph/storage/postgres.py": "tests/postgres/test_checkpoint.py",
    "trim_graph/studio.py": "tests/studio/test_langgraph_dev.py",
    # Parts of a whole that has one boundary.
    "adapters/vllm/chat_base.py": "tests/adapters/vllm/test_chat.py",
    "nodes/ask_human.py": "tests/routing/test_human.py",
    "trim_graph/cli/eval_output.py": "tests/cli/test_eval.py",
    "trim_graph/evaluation/experiment.py": "tests/cli/test_eval.py",
}
"""Source files without a test file of their own name, and the one that covers each."""


@pytest.fixture(scope="module")
def metrics():
    return {**sizes(), **traced_question(), "circles": len(circles())}


@pytest.mark.parametrize(
    "name", ["entered", "crossings", "generate_step", "circles", "node_files", "architecture"]
)
def test_a_metric_of_the_tree_does_not_exceed_its_goal(metrics, name):
    words, goal = ROWS[name]
    assert metrics[name] <= goal, words


def sources():
    """The files of code, but for those that Python names; links in trim_graph are not followed."""
    for top in ("trim_graph", "nodes", "adapters"):
        for folder, _, names in os.walk(ROOT / top):
            for name in names:
                if name.endswith(".py") and not name.startswith("__"):
                    yield (Path(folder) / name).relative_to(ROOT)


def namesake(source):
    inside = source.relative_to("trim_graph") if source.parts[0] == "trim_graph" else source
    return Path("tests") / inside.with_name(f"test_{inside.name}")


def test_each_source_file_has_a_test_file_of_its_name_or_names_the_one_that_covers_it():
    without = {
        source.as_posix(): namesake(source).as_posix()
        for source in sources()
        if source.as_posix() not in COVERED_ELSEWHERE and not (ROOT / namesake(source)).is_file()
    }
    assert not without, f"add these, or an entry in COVERED_ELSEWHERE: {without}"


@pytest.mark.parametrize("source", COVERED_ELSEWHERE)
def test_an_entry_for_a_source_file_without_tests_of_its_name_is_needed_and_true(source):
    assert Path(source) in set(sources()), "there is no such source file"
    assert not (ROOT / namesake(Path(source))).exists(), "it has tests of its own name"
    assert (ROOT / COVERED_ELSEWHERE[source]).is_file(), "what should cover it is not there"
