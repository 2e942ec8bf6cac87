"""`trim-graph train scorer`: from labelled steps to a folder that a configuration names as its scorer."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.config import TrimConfig
from trim_graph.errors import SettingsError, TrimError, counted
from trim_graph.training.settings import ScorerTraining

from .common import Progress, chosen_config
from .options import ScorerOptions, settings_of
from .terminal import Interrupted, need

if TYPE_CHECKING:
    from trim_graph.training.scorer import Heading, TrainedScorer


def run_train_scorer(options: ScorerOptions) -> None:
    """Trains a scorer, and prints its metrics.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
        Interrupted: Ctrl-C.
    """
    need("cli,train", "torch", "transformers", "accelerate", "sklearn", "scipy", "safetensors")
    if options.tuning == "lora":
        need("cli,train", "peft")
    training = settings_of(options, ScorerTraining)
    base = options.base or weights_of_small(chosen_config(options.config, {}))
    from transformers.utils import logging

    from trim_graph.training.scorer import train_scorer

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with _Phases() as phases:
        try:
            trained = train_scorer(
                options.labels, base=base, out=options.out, training=training, on_progress=phases
            )
        except KeyboardInterrupt as error:
            kept = "" if options.tuning == "head" else f"; the same command resumes from {options.out}"
            raise Interrupted(f"interrupted{kept}") from error
        except TrimError:
            raise
        except (OSError, ValueError) as error:
            raise SettingsError(str(error)) from error
    _print(trained, options)


def weights_of_small(config: TrimConfig) -> str:
    """Returns folder or hub id of the small model's weights.

    Raises:
        SettingsError: The configuration does not name any.
    """
    small = config.small
    if small.type == "example":
        from trim_graph.examples.arithmetic import SMALL

        return str(SMALL)
    if small.type == "langchain":
        raise SettingsError("the small model is behind an API and has no weights to train: give --base")
    if small.type == "vllm":
        return small.serve.weights or small.model
    return str(small.model)


class _Phases(ExitStack):
    """Shows the phases of a training, one bar each."""

    _phase: str | None = None
    _bar: Progress

    def __call__(self, heading: Heading) -> None:
        if heading.phase != self._phase:
            self.close()
            self._phase = heading.phase
            self._bar = self.enter_context(Progress(heading.phase, heading.total))
        for _ in range(heading.done - self._bar.now):
            self._bar.advance()


def _print(trained: TrainedScorer, options: ScorerOptions) -> None:
    found: dict[str, Any] = trained.file.metrics
    if options.as_json:
        print(json.dumps({"folder": str(trained.folder), "skipped": trained.skipped, **found}))
        return
    from trim_graph.training.scorer_card import figure_rows

    print(f"on {found['questions']} {found['measured_on']}, in brackets 95 % intervals:")
    for name, text in figure_rows(found):
        print(f"  {name}: {text}")
    if trained.skipped:
        print(f"  left out as too long: {counted(trained.skipped, 'solution')}")
    if trained.file.stacking is not None and trained.file.stacking.score == 0:
        print(
            "  the head adds nothing to the token probability, which needs no scorer of your own: "
            "scorer: {type: token_probability}. Label more questions, or train more than the head (--tuning)"
        )
    shown = _shown(trained.folder)
    print(
        f"written to {trained.folder}; in a configuration: scorer: {{type: transformers_prm, model: {shown}}}"
    )


def _shown(folder: Path) -> str:
    return f"'{folder}'" if " " in str(folder) else str(folder)
