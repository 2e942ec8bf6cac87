"""How far a reader must hop, held at the goals of `tests.benchmarks.structure`."""

import pytest

from tests.benchmarks.structure import ROWS, circles, sizes, traced_question


@pytest.fixture(scope="module")
def metrics():
    return {**sizes(), **traced_question(), "circles": len(circles())}


@pytest.mark.parametrize(
    "name", ["entered", "crossings", "generate_step", "circles", "node_files", "architecture"]
)
def test_a_metric_of_the_tree_does_not_exceed_its_goal(metrics, name):
    words, goal = ROWS[name]
    assert metrics[name] <= goal, words
