"""Sends a whole question to one of the models: a linear classifier on hashed words and n-grams decides."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from trim_graph.errors import SettingsError

from .base import Choice, Observation, Policy, in_range
from .files import PolicyContents

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]
    Reals = NDArray[np.float64]


class query_router(Policy):
    """The large model answers the question if that is likely to help, else the small one; nothing is scored.

    Args:
        weights: One per feature (`trim_graph.policies.query_router`).
        idf: The features' inverse document frequencies, as in training.
        bias: Bias of the classifier.
        limit: In [0, 1]. Above this probability the large model answers: it sets the share of questions.
        made: How it was trained, for the file.

    Raises:
        SettingsError: ``limit`` is out of range.
        ValueError: The numbers are no classifier over these features.
    """

    needs_score = False
    decides = False

    def __init__(
        self,
        weights: NDArray[np.float64],
        idf: NDArray[np.float64],
        bias: float,
        *,
        limit: float = 0.5,
        made: dict[str, Any] | None = None,
    ) -> None:
        import numpy as np

        if not in_range(limit, 0, 1):
            raise SettingsError(f"query_router's limit is {limit!r}: choose a probability in [0, 1]")
        for name, array in (("weights", weights), ("idf", idf)):
            if array.shape != (SIZE,) or array.dtype != np.float64 or not np.isfinite(array).all():
                raise ValueError(f"{name} must be {SIZE} finite numbers of float64")
        if not math.isfinite(bias):
            raise ValueError(f"bias is {bias}")
        self.weights, self.idf, self.bias, self.limit = weights, idf, bias, limit
        self.made = made or {}

    def probability(self, question: str) -> float:
        """Returns how likely the large model is right where the small one is wrong."""
        import numpy as np

        counted = count_features(question)
        logit = float(np.dot(weighted(counted, self.idf), self.weights[counted.places])) + self.bias
        # exp() of a large number overflows.
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

    def next_writer(self, observation: Observation) -> Choice:
        """Compares the question's probability, which is computed once a run and remembered."""
        known = observation.memory
        probability = known if isinstance(known, float) else self.probability(observation.question)
        return Choice("large_to_end" if probability > self.limit else "small", probability)

    @property
    def small_follows(self) -> bool:
        """True: a question that the small model has begun is its own."""
        return True

    def with_limit(self, limit: float) -> query_router:
        """Returns the same classifier with another limit: another share of questions for the large model."""
        return query_router(self.weights, self.idf, self.bias, limit=limit, made=self.made)

    def contents(self) -> PolicyContents:
        """Returns what makes this policy again."""
        parameters = {"limit": self.limit, "bias": self.bias, "features": VERSION}
        return PolicyContents(
            "query_router", parameters, {"weights": self.weights, "idf": self.idf}, made=self.made
        )

    @classmethod
    def from_contents(cls, contents: PolicyContents) -> query_router:
        """Makes the policy from the contents of a file.

        Raises:
            ValueError: It is not what `contents` returned.
        """
        given, arrays = contents.parameters, contents.arrays
        if given["features"] != VERSION:
            raise ValueError(f"its features are of version {given['features']!r}; known is {VERSION}")
        bias, limit = float(given["bias"]), float(given["limit"])
        return cls(arrays["weights"], arrays["idf"], bias, limit=limit, made=contents.made)

    def __repr__(self) -> str:
        return f"query_router(limit={self.limit})"


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
    """Hashed places that a text fills, in ascending order, and how often each."""

    places: Indices
    counts: Reals


def count_features(text: str) -> Counts:
    """Counts the words and runs of characters of a text by their places."""
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
    """Weighs places by how few of the documents fill them."""
    import numpy as np

    frequencies = np.zeros(SIZE)
    for document in documents:
        frequencies[document.places] += 1
    weights: Reals = np.log((1 + len(documents)) / (1 + frequencies)) + 1
    return weights


def weighted(counted: Counts, idf: Reals) -> Reals:
    """Returns the value of each place that is filled; words and characters have length 1 each."""
    import numpy as np

    values: Reals = (1 + np.log(counted.counts)) * idf[counted.places]
    border = int(np.searchsorted(counted.places, WORDS))
    for part in (values[:border], values[border:]):
        if len(part):
            part /= np.sqrt(np.dot(part, part))
    return values
