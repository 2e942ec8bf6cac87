"""Features of a text for a linear classifier: words and character n-grams, hashed to a fixed size, TF-IDF.

Training and run time both come here, so they see the same numbers. Any string has features; the time grows
with its length, the size of what comes out does not. The formulas are scikit-learn's (`TfidfTransformer` with
``sublinear_tf`` and ``smooth_idf``), applied to words and to characters apart: each part has length 1.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]
    Reals = NDArray[np.float64]

WORDS = 4096
"""Places for words and pairs of words."""
CHARACTERS = 8192
"""Places for runs of characters, behind those of the words."""
SIZE = WORDS + CHARACTERS
RUNS = (3, 4, 5)
"""Lengths of the runs of characters."""
VERSION = 1
"""Goes into policy files: another way to compute features is another version."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


class Counts(NamedTuple):
    """Which places a text fills, in ascending order, and how often each."""

    places: Indices
    counts: Reals


def count_features(text: str) -> Counts:
    """Count the words and runs of characters of a text by their places."""
    import numpy as np

    lowered = " ".join(text.lower().split())
    dense = np.zeros(SIZE, dtype=np.int64)
    for place, count in _words(lowered).items():
        dense[place] += count
    dense[WORDS:] = _characters(f" {lowered} ")
    places = np.flatnonzero(dense)
    return Counts(places, dense[places].astype(np.float64))


def _words(text: str) -> Counter[int]:
    found: Counter[int] = Counter()
    before = ""
    for word in _TOKEN.findall(text):
        found[_place(word)] += 1
        if before:
            found[_place(f"{before} {word}")] += 1
        before = word
    return found


def _place(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) % WORDS


def _characters(text: str) -> Indices:
    import numpy as np

    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    counts = np.zeros(CHARACTERS, dtype=np.int64)
    for length in RUNS:
        if len(points) < length:
            continue
        hashed = np.full(len(points) - length + 1, length, dtype=np.uint64)
        for offset in range(length):
            # FNV-1a, a character at a time instead of a byte.
            hashed ^= points[offset : offset + len(hashed)]
            hashed *= np.uint64(0x100000001B3)
        hashed ^= hashed >> np.uint64(32)
        hashed *= np.uint64(0x9E3779B97F4A7C15)
        places = (hashed >> np.uint64(40)) % np.uint64(CHARACTERS)
        counts += np.bincount(places.astype(np.int64), minlength=CHARACTERS)
    return counts


def inverse_document_frequencies(documents: list[Counts]) -> Reals:
    """Weigh places by how few of the documents fill them."""
    import numpy as np

    frequencies = np.zeros(SIZE)
    for document in documents:
        frequencies[document.places] += 1
    weights: Reals = np.log((1 + len(documents)) / (1 + frequencies)) + 1
    return weights


def weighted(counted: Counts, idf: Reals) -> Reals:
    """Return the value of each place that is filled; words and characters have length 1 each."""
    import numpy as np

    values: Reals = (1 + np.log(counted.counts)) * idf[counted.places]
    border = int(np.searchsorted(counted.places, WORDS))
    for part in (values[:border], values[border:]):
        if len(part):
            part /= np.sqrt(np.dot(part, part))
    return values
