"""The executor of a command: the models run in this process, or in workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from trim_graph.config import TrimConfig
from trim_graph.errors import SettingsError
from trim_graph.evaluation.executor import Executor, LocalExecutor, Models
from trim_graph.evaluation.judging import Judge

from .models import load_parts, need_extras
from .reporting import need


@contextmanager
def open_executor(
    config: TrimConfig,
    load: Callable[[], Models],
    *,
    judge: Judge | None = None,
    rated: bool,
    ray: str | None,
    count: int | None,
) -> Iterator[Executor]:
    """Opens the executor that a command line asks for.

    Args:
        config: Names the models.
        load: Loads them in this process.
        judge: Scores in the scorer's place where a task says so.
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
        yield LocalExecutor(load)
        return
    need("ray", "ray")
    need_extras(config)
    from trim_graph.distributed.ray import open_ray_executor

    with open_ray_executor(ray, partial(_models, config, judge, rated), config, count=count) as executor:
        yield executor


def _models(config: TrimConfig, judge: Judge | None, rated: bool) -> Models:
    """Loads the models on a worker."""
    return Models(config, load_parts(config, rated=rated), judge)
