"""Makes the checkpoints that a release leaves behind: run once, by that release, and kept in the repository.

``python -m tests.released.make`` writes ``runs-VERSION.db.gz``: a thread that failed within a large call, one
stopped before the scorer, one finished.
"""

from __future__ import annotations

import gzip
import tempfile
from contextlib import suppress
from pathlib import Path

from trim_graph import Budget, __version__, create_trim_graph, open_checkpointer
from trim_graph.policies import stay_on_large, threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

HERE = Path(__file__).parent
SMALL = ["small one", "small two", "small three", "so it is \\boxed{4}"]
LARGE = ["LARGE one", "LARGE two", "LARGE three", "SO it is \\boxed{5}"]
TEXT = "small one\n\nLARGE two\n\nLARGE three\n\nso it is \\boxed{4}"
QUESTION = {"messages": [("user", "What is 2 + 2?")]}


def build(checkpointer, large=LARGE):
    """Builds the graph that the threads belong to."""
    return create_trim_graph(
        ScriptedChatModel(script=SMALL, name="tiny"),
        ScriptedChatModel(script=large, name="huge"),
        ScriptedScorer({"small two": 0.1}),
        policy=stay_on_large(threshold(0.5), k=1),
        budget=Budget(large_tokens=1000),
        seed=1,
        checkpointer=checkpointer,
    )


def on(thread):
    """Name a thread."""
    return {"configurable": {"thread_id": thread}}


def _fails(prefix):
    raise RuntimeError("the process ends here")


def main() -> None:
    """Writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "runs.db"
        with open_checkpointer(f"sqlite:{file}") as checkpointer:
            with suppress(RuntimeError):
                build(checkpointer, _fails).invoke(QUESTION, on("large call"), durability="sync")
            stop = {"interrupt_before": ["score_step"]}
            build(checkpointer).invoke(QUESTION, on("draft"), durability="sync", **stop)
            build(checkpointer).invoke(QUESTION, on("finished"), durability="sync")
        (HERE / f"runs-{__version__}.db.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
