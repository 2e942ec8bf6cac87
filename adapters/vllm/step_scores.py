"""Scores of steps from a model with prefix cache: which are known, and which inputs give the others."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from trim_graph.adapters.known_scores import KnownScores
from trim_graph.adapters.prm.formats import Head, PRMInput
from trim_graph.adapters.prm.scores import read_classified


@dataclass(frozen=True, slots=True)
class PendingSteps:
    """The steps of one solution whose scores must be requested.

    Attributes:
        keys: A key for each step: the digest of the tokens up to its score.
        known: The score of each step; None where it has to be computed.
        prefixes: Token ids up to each step that has to be computed, the shortest first, so that each finds
            the one before in the cache.
    """

    keys: list[bytes]
    known: list[float | None]
    prefixes: list[list[int]]

    @property
    def tokens(self) -> int:
        """Tokens in all prefixes, those that the model takes from its cache among them."""
        return sum(map(len, self.prefixes))


class StepScores:
    """Scores of steps by the tokens up to them; the least recently used are dropped.

    A model with causal attention computes the same number at a token whatever follows it. So the score of a
    step is that of the input which ends there, and holds for all solutions that begin with these tokens.

    Args:
        size: Most scores to keep; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._kept = KnownScores(size)

    def __len__(self) -> int:
        """Returns how many scores are kept."""
        return len(self._kept)

    def pending(self, asked: PRMInput) -> PendingSteps:
        """Returns what is known of a solution and what has to be sent."""
        keys = _keys(asked)
        known = [self._kept.get(key) for key in keys]
        ends = [end for end, score in zip(asked.step_positions, known, strict=True) if score is None]
        return PendingSteps(keys, known, [asked.ids[: end + 1] for end in ends])

    def settle(self, pending: PendingSteps, rows: Sequence[Any], head: Head, *, at: str) -> list[float]:
        """Reads the answers to the inputs that were pending, and keeps their scores.

        Args:
            pending: What was sent.
            rows: The pooler's answer to each of `PendingSteps.prefixes`.
            head: Kind of head that the format is read from.
            at: Name of the PRM, for errors.

        Returns:
            One probability for each step of the solution.

        Raises:
            ScorerError: An answer is not a probability, or not that of a `head`.
        """
        missing = [number for number, score in enumerate(pending.known) if score is None]
        computed = read_classified(rows, [n + 1 for n in missing], len(pending.known), head, at=at)
        found = dict(zip(missing, computed, strict=True))
        for number, score in found.items():
            self._kept.put(pending.keys[number], score)
        return [found[n] if score is None else score for n, score in enumerate(pending.known)]


def _keys(asked: PRMInput) -> list[bytes]:
    digest = blake2b(digest_size=16)
    keys = []
    begun = 0
    for end in asked.step_positions:
        digest.update(array("q", asked.ids[begun : end + 1]).tobytes())
        begun = end + 1
        keys.append(digest.digest())
    return keys
