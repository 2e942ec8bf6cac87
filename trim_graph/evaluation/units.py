"""The units of work of a dataset: each question so many times; those of one shard, those that are left."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from trim_graph.distributed.shards import WHOLE, Shard

from .datasets import Dataset, first_questions
from .running import Task, unit_of


@dataclass(frozen=True, slots=True)
class Units:
    """Units of work.

    Attributes:
        dataset: The questions.
        n: How many of them: the first.
        samples: Units of each.
        shard: Whose units these are.
    """

    dataset: Dataset
    n: int
    samples: int = 1
    shard: Shard = WHOLE

    def __len__(self) -> int:
        return len(range(self.shard.number - 1, self.n, self.shard.of)) * self.samples

    def left(self, finished: Container[int]) -> int:
        """Return how many are left.

        Args:
            finished: Numbers of those that are done, as `unit_of` gives them.
        """
        return sum(
            unit_of(index, sample, self.samples) not in finished
            for index in range(self.shard.number - 1, self.n, self.shard.of)
            for sample in range(self.samples)
        )

    def tasks(self, finished: Container[int]) -> Iterator[Task]:
        """Give those that are left, in order; what is finished is looked up as each is taken."""
        for index, question in enumerate(first_questions(self.dataset, self.n, default=self.n)):
            if self.shard.takes(index):
                for sample in range(self.samples):
                    if unit_of(index, sample, self.samples) not in finished:
                        yield Task(index, sample, question)
