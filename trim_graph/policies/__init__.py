"""Routing policies: small pure objects, composable with ``|`` and ``&``; a plain function is one too."""

from .base import (
    AllOf,
    AnyOf,
    Choice,
    Decision,
    FunctionPolicy,
    NextWriter,
    Observation,
    Policy,
    as_policy,
)
from .baselines import (
    advantage,
    by_pattern,
    entropy_probe,
    large_only,
    random_rate,
    small_only,
    stay_on_large,
    threshold,
)
from .files import load_policy, save_policy
from .query_router import query_router

__all__ = [
    "AllOf",
    "AnyOf",
    "Choice",
    "Decision",
    "FunctionPolicy",
    "NextWriter",
    "Observation",
    "Policy",
    "advantage",
    "as_policy",
    "by_pattern",
    "entropy_probe",
    "large_only",
    "load_policy",
    "query_router",
    "random_rate",
    "save_policy",
    "small_only",
    "stay_on_large",
    "threshold",
]
