"""Who does the work of a command: the models of this process, or workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from trim_graph.config import TrimConfig
from trim_graph.distributed.workers import LocalWorkers, Models, Workers
from trim_graph.errors import SettingsError
from trim_graph.evaluation.judging import Judge

from .models import load_parts, need_extras
from .reporting import need


@contextmanager
def open_workers(
    config: TrimConfig,
    load: Callable[[], Models],
    *,
    judge: Judge | None = None,
    rated: bool,
    ray: str | None,
    count: int | None,
) -> Iterator[Workers]:
    """Open those who run the models.

    Args:
        config: Names the models.
        load: Loads them here.
        judge: Scores in the scorer's place where a job says so.
        rated: Whether the scorer is needed also where the policy looks at no score.
        ray: Address of a Ray cluster, or ``auto``; None: the models run here.
        count: Workers on the cluster.

    Raises:
        SettingsError: The cluster cannot be reached, or there is none to have workers on.
        MissingExtra: Ray is not installed.
    """
    if ray is None:
        if count is not None:
            raise SettingsError("--ray-workers needs --ray")
        yield LocalWorkers(load)
        return
    need("ray", "ray")
    need_extras(config)
    from trim_graph.distributed.ray_workers import open_ray_workers

    with open_ray_workers(ray, partial(_models, config, judge, rated), config, count=count) as workers:
        yield workers


def _models(config: TrimConfig, judge: Judge | None, rated: bool) -> Models:
    """Load the models on a worker."""
    return Models(config, load_parts(config, rated=rated), judge)
