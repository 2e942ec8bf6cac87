"""A routing set-up in a YAML file, as `trim-graph --config trim.yaml` reads it."""

from .load import (
    EXAMPLE,
    Parts,
    TrimConfig,
    build_graph,
    build_parts,
    example_config,
    for_measuring,
    load_config,
    make_config,
)
from .quality import quality_policy

__all__ = [
    "EXAMPLE",
    "Parts",
    "TrimConfig",
    "build_graph",
    "build_parts",
    "example_config",
    "for_measuring",
    "load_config",
    "make_config",
    "quality_policy",
]
