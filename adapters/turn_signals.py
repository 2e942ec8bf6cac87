"""A scorer of an agent's turns by signals that cost nothing: failed tools, invalid and repeated calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from trim_graph.errors import ScorerError

from .base import ScorableStep, ScorerReply, Turn, TurnCall
from .settings import TurnSignalsSettings


class TurnSignals(TurnSignalsSettings):
    """Scores each turn of an agent by what its tool calls and results show, without a model.

    A turn gets the lowest score of its signals, or ``otherwise`` if it has none:

    | signal | a turn has it if | default score |
    |---|---|---|
    | ``tool_error`` | the small model writes it after a tool has failed (status ``error``) | 0.2 |
    | ``invalid_call`` | it calls an unknown tool, or its arguments are no JSON or do not fit the schema | 0 |
    | ``repeated_call`` | an earlier turn called the same tool with the same arguments | 0.2 |
    | ``empty`` | it has neither text nor a call | 0 |
    | ``otherwise`` | none of these | 1 |

    With ``threshold(0.5)`` the large model thus writes the turn after a failed tool call, and the small model
    those after it. None turns a signal off, such as ``repeated_call=None`` for tools that are polled. The
    scores order turns; they are no measured probabilities. `MinimumScorer` combines them with another scorer.

    The scorer reads `trim_graph.adapters.base.Turn`, which `trim_graph.agents.TrimMiddleware` makes from the
    messages; no text can imitate a signal. A turn whose message another middleware has removed shows none.

    Settings, by keyword: `trim_graph.adapters.settings.TurnSignalsSettings`.

    Raises:
        ScorerError: A step is not an agent's turn; by a call.
        ValueError: A setting is wrong.

    Example:
        ```python
        routing = TrimMiddleware(large, TurnSignals(), policy=threshold(0.5))
        ```
    """

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every turn of ``steps``."""
        called: set[str] = set()
        scores = []
        for index, step in enumerate(steps):
            if not step.is_turn:
                raise ScorerError(
                    f"step {index} is not an agent's turn, and the scorer TurnSignals rates nothing else: "
                    "use it with TrimMiddleware"
                )
            turn = step.turn
            if turn is None:
                scores.append(self.otherwise)
                continue
            scores.append(self._score(turn, step.writer, called))
            called.update(map(_identity, turn["calls"]))
        return ScorerReply(scores)

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every turn of ``steps``; see `score`."""
        return self.score(question, steps)

    def check_writer(self, writer: str, model: Any) -> None:
        """Refuses every chat model that writes steps of a solution.

        Raises:
            ValueError: Always: a graph has no turns.
        """
        raise ValueError(
            "the scorer TurnSignals rates an agent's turns, and a graph writes steps of a solution: use it "
            "with TrimMiddleware, or choose another scorer"
        )

    def _score(self, turn: Turn, writer: str, called: set[str]) -> float:
        """Returns the score of a turn.

        Args:
            turn: The turn.
            writer: Its writer. That a tool has failed says nothing of the large model's way out.
            called: Identities of the calls of all earlier turns.
        """
        signals = [
            (self.tool_error, writer != "large" and _has_error(turn)),
            (self.invalid_call, any(call["invalid"] is not None for call in turn["calls"])),
            (self.repeated_call, any(_identity(call) in called for call in turn["calls"])),
            (self.empty, not turn["calls"] and not turn["text"].strip()),
        ]
        shown = [score for score, is_shown in signals if is_shown and score is not None]
        return min(shown, default=self.otherwise)


def _has_error(turn: Turn) -> bool:
    return any(result["status"] == "error" for result in turn["results"])


def _identity(call: TurnCall) -> str:
    """Returns a text that two calls share if they have the same name and arguments."""
    return json.dumps([call["name"], call["args"]], sort_keys=True, default=str)
