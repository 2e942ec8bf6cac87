"""Trains `query_router`: which questions does the large model get right and the small one wrong?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trim_graph.errors import InputError, SettingsError
from trim_graph.policies.query_router import (
    SIZE,
    count_features,
    inverse_document_frequencies,
    query_router,
    weighted,
)
from trim_graph.storage.rows import read_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse strengths of regularisation (scikit-learn's ``C``) that cross-validation chooses from."""
FOLDS = 5
LEAST = 2 * FOLDS
"""Fewest training questions of either kind."""


class Example(NamedTuple):
    """A question, and how often each model got it right: 0 or 1 after one run."""

    question: str
    small: float
    large: float | None
    """None where unknown: the large model is taken for right then."""

    @property
    def benefits(self) -> bool:
        """Whether the question is better given to the large model."""
        large = 1.0 if self.large is None else self.large
        return large * (1 - self.small) >= 0.5


@dataclass(frozen=True, slots=True)
class TrainedRouter:
    """A router and how good it is.

    Attributes:
        policy: With the limit that gives the wished share on the validation questions.
        probabilities: Of the validation questions.
        auc: Area under the ROC curve on the validation questions; 0.5 is guessing.
        c: The strength chosen.
        trained_on: Number of questions.
        validated_on: Number of questions.
        base_rate: Share of all questions that benefit.
    """

    policy: query_router
    probabilities: tuple[float, ...]
    auc: float
    c: float
    trained_on: int
    validated_on: int
    base_rate: float

    @property
    def share(self) -> float:
        """Share of the validation questions that go to the large model."""
        return sum(p > self.policy.limit for p in self.probabilities) / len(self.probabilities)

    def at_share(self, share: float) -> TrainedRouter:
        """Returns the same router with another limit.

        Raises:
            SettingsError: ``share`` is out of range.
        """
        return replace(self, policy=self.policy.with_limit(_limit(self.probabilities, share)))


def read_examples(paths: Iterable[str | Path]) -> list[Example]:
    """Reads what each model made of each question; several runs of a question are averaged.

    Traces of other policies and of questions that failed, or have no right answer to compare with, are passed
    over.

    Args:
        paths: ``.jsonl``, ``.json`` or ``.parquet``.

    Raises:
        InputError: A row is neither a trace nor a pair of outcomes, or no question has an outcome of the
            small model.
    """
    found: dict[str, dict[str, list[bool]]] = {}
    for path in paths:
        for place, row in read_rows(path):
            for question, writer, correct in _outcomes(row, place):
                found.setdefault(question, {"small": [], "large": []})[writer].append(correct)
    examples = [
        Example(question, _mean(of["small"]), _mean(of["large"]) if of["large"] else None)
        for question, of in found.items()
        if of["small"]
    ]
    if not examples:
        raise InputError(
            "the traces hold no outcome of the small model: give those of a run with the policy small_only, "
            "or rows with question and small_correct"
        )
    return examples


def _outcomes(row: dict[str, Any], place: str) -> list[tuple[str, str, bool]]:
    question = row.get("question")
    if not isinstance(question, str):
        raise InputError(f"{place}: question is {question!r}; expected a text")
    if "small_correct" in row:
        outcomes = [(writer, row.get(f"{writer}_correct")) for writer in ("small", "large")]
    elif "policy" in row and "correct" in row:
        writer = {"small_only": "small", "large_only": "large"}.get(_policy_of(row["policy"]))
        outcomes = [(writer, row["correct"])] if writer and not row.get("error") else []
    else:
        raise InputError(f"{place}: neither a trace (policy, correct) nor a row with small_correct")
    for writer, correct in outcomes:
        if correct is not None and not isinstance(correct, bool):
            raise InputError(f"{place}: {writer} correct is {correct!r}; expected true, false or null")
    return [(question, writer, correct) for writer, correct in outcomes if correct is not None]


def _policy_of(policy: Any) -> str:
    """Names a policy as traces give it: an object, or in Parquet its JSON."""
    if isinstance(policy, str) and policy.startswith("{"):
        import json

        policy = json.loads(policy)
    return str(policy.get("type")) if isinstance(policy, dict) else str(policy)


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)


def train_query_router(
    examples: Sequence[Example], *, validation: float = 0.2, seed: int = 0
) -> TrainedRouter:
    """Fits a logistic regression; cross-validation chooses how much it is regularised, by log loss.

    Half of the validation questions are then above the limit; `TrainedRouter.at_share` chooses another share.

    Args:
        examples: One per question.
        validation: Share of the questions kept from training.
        seed: Draws them, and the folds.

    Raises:
        SettingsError: ``validation`` is out of range.
        InputError: There are too few questions of either kind.
        ImportError: scikit-learn is not installed.
    """
    _check_share("validation", validation)
    labels = [example.benefits for example in examples]
    rarest = min(sum(labels), len(labels) - sum(labels))
    if rarest < LEAST / (1 - validation) or rarest * validation < 1:
        raise InputError(
            f"of {len(labels)} questions {sum(labels)} benefit from the large model; a classifier needs at "
            f"least {round(LEAST / (1 - validation)) + 1} of each kind, those that do and those that do not"
        )
    try:
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
        from sklearn.model_selection import (  # type: ignore[import-untyped]
            GridSearchCV,
            StratifiedKFold,
            train_test_split,
        )
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f'training needs scikit-learn: pip install "trim-graph[train]" ({error})'
        ) from error
    import numpy as np

    kept, held = train_test_split(
        range(len(examples)), test_size=validation, random_state=seed, stratify=labels
    )
    counted = [count_features(examples[index].question) for index in kept]
    idf = inverse_document_frequencies(counted)
    search = GridSearchCV(
        LogisticRegression(max_iter=5000),
        {"C": STRENGTHS},
        scoring="neg_log_loss",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
    )
    matrix = feature_matrix([examples[index].question for index in kept], idf)
    with threadpool_limits(1):  # the products are too small to share among cores
        search.fit(matrix, [labels[index] for index in kept])
    best = search.best_estimator_
    router = query_router(best.coef_[0].astype(np.float64), idf, float(best.intercept_[0]))
    held_out = [examples[index] for index in held]
    probabilities = [router.probability(example.question) for example in held_out]
    made: dict[str, Any] = {
        "auc": auc_of(router, held_out),
        "c": float(search.best_params_["C"]),
        "trained_on": len(kept),
        "validated_on": len(held),
        "base_rate": sum(labels) / len(labels),
    }
    limit = _limit(probabilities, 0.5)
    policy = query_router(router.weights, idf, router.bias, limit=limit, made={**made, "seed": seed})
    return TrainedRouter(policy=policy, probabilities=tuple(probabilities), **made)


def _limit(probabilities: Sequence[float], share: float) -> float:
    """Returns the limit above which this share of the probabilities lies."""
    import numpy as np

    _check_share("share", share)
    return float(np.quantile(probabilities, 1 - share, method="lower"))


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise SettingsError(f"{name} is {value}: choose a share between 0 and 1")


def auc_of(router: query_router, examples: Sequence[Example]) -> float:
    """Returns the area under the ROC curve on examples it was not trained on; 0.5 is guessing."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    scores = [router.probability(example.question) for example in examples]
    return float(roc_auc_score([example.benefits for example in examples], scores))


def feature_matrix(questions: Sequence[str], idf: Any) -> csr_matrix:
    """Returns the features of questions, one row each, exactly as `query_router` computes them."""
    import numpy as np
    from scipy.sparse import csr_matrix

    counted = [count_features(question) for question in questions]
    values = np.concatenate([weighted(one, idf) for one in counted])
    places = np.concatenate([one.places for one in counted])
    starts = np.cumsum([0, *(len(one.places) for one in counted)])
    return csr_matrix((values, places, starts), shape=(len(questions), SIZE))
