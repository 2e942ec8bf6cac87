"""Data of a report, from one pass over the rows of a run: metrics at once, rows put in order on disk."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from trim_graph.evaluation.plots import Positions
from trim_graph.evaluation.records import RecordStep, Row
from trim_graph.evaluation.scorer_metrics import Discrimination, discrimination

PLACES = 10
"""Parts that a solution is divided into, to say where the large model wrote."""
MIN_SOLUTIONS = 5
"""Fewer solutions than this that have so many steps say nothing of a step, unless no more were run."""
_BATCH = 500


class Calibration:
    """Scores, and whether what was scored is right, over all arms.

    Steps where a dataset says of each whether it is right, and whole solutions by their least score. What
    several arms have in common counts once.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._steps: list[tuple[float, bool]] = []
        self._whole: list[tuple[float, bool]] = []
        self._owners: tuple[list[int], list[int]] = ([], [])

    def add(self, row: Row) -> None:
        """Takes in one more row."""
        digest, fine = hashlib.sha256(f"{row['index']}".encode()), True
        for step in row["steps"]:
            if fine:
                draft = step["discarded"] or step
                self._add_step(row["index"], digest.digest(), draft["text"], draft["score"], draft["label"])
                if step["discarded"]:
                    self._add_step(row["index"], digest.digest(), step["text"], step["score"], step["label"])
            fine = fine and step["label"] is True
            digest.update(b"\0" + step["text"].encode("utf-8", "replace"))
        scores = [step["score"] for step in row["steps"] if step["score"] is not None]
        if scores and row["correct"] is not None and self._is_new(digest.digest()):
            self._whole.append((min(scores), row["correct"]))
            self._owners[1].append(row["index"])

    def _add_step(
        self, index: int, before: bytes, text: str, score: float | None, label: bool | None
    ) -> None:
        if score is None or label is None:
            return
        if self._is_new(hashlib.sha256(before + text.encode("utf-8", "replace")).digest()):
            self._steps.append((score, label))
            self._owners[0].append(index)

    def _is_new(self, digest: bytes) -> bool:
        known = digest in self._seen
        self._seen.add(digest)
        return not known

    def metrics(self) -> tuple[str, Discrimination] | None:
        """Returns what was rated, ``steps`` or ``solutions``, and how well; None where nothing was scored."""
        for name, pairs, owners in (
            ("steps", self._steps, self._owners[0]),
            ("solutions", self._whole, self._owners[1]),
        ):
            if pairs:
                return name, discrimination(pairs, owners)
        return None


class Places:
    """Shares of the large model by the place in the solutions of one arm."""

    def __init__(self) -> None:
        self.solutions = 0
        self._steps: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        self._parts = [[0.0, 0.0] for _ in range(PLACES)]

    def add(self, steps: list[RecordStep]) -> None:
        """Takes in one more solution."""
        if not steps:
            return
        self.solutions += 1
        for at, step in enumerate(steps):
            large = step["writer"] == "large"
            self._steps[at][0] += 1
            self._steps[at][1] += large
            begin, end = PLACES * at / len(steps), PLACES * (at + 1) / len(steps)
            for part in range(int(begin), min(PLACES, int(end) + 1)):
                covered = max(0.0, min(end, part + 1) - max(begin, part))
                self._parts[part][0] += covered
                self._parts[part][1] += covered * large

    def shares(self) -> Positions:
        """Returns the shares of the large model."""
        enough = min(MIN_SOLUTIONS, self.solutions)
        by_step = [self._steps[at] for at in range(len(self._steps))]
        return Positions(
            by_step=[large / n if n >= enough else None for n, large in by_step],
            by_place=[large / n if n > 0 else None for n, large in self._parts],
        )


class Gathered:
    """Rows by question, their calibration and the places of the large model's steps, after one pass.

    Args:
        rows: Of any order.
        spool: A file to put them in order in; it becomes as large as they are.
    """

    def __init__(self, rows: Iterable[Row], spool: Path) -> None:
        self.calibration = Calibration()
        self.places: dict[str, Places] = {}
        self.count = 0
        self._database = sqlite3.connect(spool)
        # The file is thrown away: nothing needs to survive a crash.
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE rows (question INT, arm TEXT, sample INT, row TEXT)")
        batch: list[tuple[int, str, int, str]] = []
        for row in rows:
            self.count += 1
            self.calibration.add(row)
            self.places.setdefault(row["arm"], Places()).add(row["steps"])
            # ASCII escapes keep what UTF-8 cannot hold, such as half of a pair of surrogates.
            batch.append((row["index"], json.dumps(row["arm"]), row["sample"], json.dumps(row)))
            if len(batch) == _BATCH:
                self._write(batch)
        self._write(batch)
        self._database.execute("CREATE INDEX place ON rows (question, arm, sample)")

    def by_question(self) -> Iterator[list[Row]]:
        """Gives the rows of one question after the other, those of one arm and sample once."""
        found = self._database.execute("SELECT question, row FROM rows ORDER BY question, arm, sample, rowid")
        for _, rows in groupby(found, key=lambda record: record[0]):
            parsed = [json.loads(text) for _, text in rows]
            yield list({(row["arm"], row["sample"]): row for row in parsed}.values())

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()

    def _write(self, batch: list[tuple[int, str, int, str]]) -> None:
        self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", batch)
        batch.clear()
