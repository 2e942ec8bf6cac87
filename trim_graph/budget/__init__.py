"""Budget of the large model: limits, usage, and reservations in accounts that runs share."""

from .limits import Budget, Quota, Quotas, RemainingBudget
from .usage import ModelPrice, Prices, StepWriter, Usage, Writer

__all__ = [
    "Budget",
    "ModelPrice",
    "Prices",
    "Quota",
    "Quotas",
    "RemainingBudget",
    "StepWriter",
    "Usage",
    "Writer",
]
