"""What the large model may use: limits, usage, and reservations in accounts that runs share."""

from .limits import Allowance, Allowances, Budget, BudgetLeft
from .usage import ModelPrice, Prices, Spend, StepWriter, Writer

__all__ = [
    "Allowance",
    "Allowances",
    "Budget",
    "BudgetLeft",
    "ModelPrice",
    "Prices",
    "Spend",
    "StepWriter",
    "Writer",
]
