"""Training of a step scorer: a causal model with a linear head, on labelled steps.

The head reads the hidden state at the tag after each step, and all steps of a solution are learned in one
pass. The head is fitted first, on the frozen model's hidden states (scikit-learn). ``lora`` and ``full`` then
train further from it, which keeps the features of the base better than a random head does (Kumar et al.,
arXiv 2202.10054).

Fine-tuning runs on transformers' `Trainer`. TRL's `PRMTrainer` is experimental, classifies tokens into two
classes, and takes hard labels; the targets here are soft, and vLLM serves a head of one label.

Imports torch and transformers.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import (
    DynamicCache,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from trim_graph.adapters.model_source import check_model, load_tokenizer, max_positions, pick_device
from trim_graph.adapters.prm.formats import TrimPRMFormat
from trim_graph.adapters.prm.heads import load_base
from trim_graph.adapters.prm.scorer_file import ScorerFile, Stacking
from trim_graph.errors import InputError, SettingsError, is_context_full

from .scorer_card import Measured, calibration_steps, fit_platt, fit_stacking, measure, write_card
from .scorer_data import (
    LabelledSteps,
    Split,
    folds_by_question,
    methods_of,
    read_label_files,
    split_by_question,
)
from .settings import ScorerTraining as ScorerTraining

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEARNING_RATES = {"lora": 1e-4, "full": 1e-5}
UNFINISHED = "unfinished"
"""Folder of checkpoints within the scorer's, until it is finished."""


class Encoded(NamedTuple):
    """A solution as the model reads it."""

    solution: LabelledSteps
    ids: list[int]
    positions: list[int]


class Heading(NamedTuple):
    """State of a progress display: phase, items done and items in all."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class TrainedScorer:
    """A finished training.

    Attributes:
        folder: Folder of the scorer; every adapter of reward models takes it.
        file: Content of its `trim_scorer.json`, with the metrics.
        skipped: Solutions left out as too long.
    """

    folder: Path
    file: ScorerFile
    skipped: int


def train_scorer(
    labels: Sequence[str | Path],
    *,
    base: str,
    out: str | Path,
    training: ScorerTraining | None = None,
    on_progress: Callable[[Heading], None] | None = None,
) -> TrainedScorer:
    """Trains a scorer and writes its folder.

    The folder is in the layout of transformers: weights with LoRA merged and calibration in the head,
    tokenizer, a model card and, written last, `trim_scorer.json`. Called again with the same arguments, an
    interrupted training goes on: of ``lora`` or ``full`` from its last evaluation.

    Args:
        labels: Label files; see `trim_graph.training.scorer_data.read_label_files`.
        base: Causal model: folder or hub id.
        out: Folder to be made, empty, or of an interrupted training.
        training: Settings.
        on_progress: Called as work advances.

    Raises:
        InputError: The labels are missing, of one kind only, or of too few questions.
        SettingsError: A setting does not fit, or the folder holds anything but an interrupted training.
        ValueError: The base cannot be read: no safetensors, no causal model, no ``eos_token``.
    """
    settings = training or ScorerTraining()
    begun = time.monotonic()
    files, folder = [Path(file) for file in labels], Path(out)
    base, device = check_model(base), pick_device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device is {settings.device!r}, and torch sees no CUDA here: choose cpu or auto")
    solutions = read_label_files(files)
    split = split_by_question(
        solutions, validation=settings.validation, test=settings.test, seed=settings.seed
    )
    checkpoints = _Checkpoints(folder, settings, base, solutions)
    tokenizer = load_tokenizer(base, chat=False)
    layout = TrimPRMFormat(tokenizer, step_token=settings.step_token, system_prompt=settings.system_prompt)
    dtype = _dtype(settings, device)
    say = on_progress or (lambda heading: None)
    # Full tuning keeps its weights in float32 until it is done: bfloat16 loses small steps.
    network = load_base(base, "float32" if settings.tuning == "full" else dtype).to(device).eval()
    encoded, skipped = _encode(layout, split, settings.max_tokens or max_positions(network))
    if settings.tuning == "head":
        encoded = encoded._replace(train=[*encoded.train, *encoded.validation], validation=[])
        fitted, calibrated_with = encoded.train, "cross-validated"
        head, logits = _cross_fit(fitted, _states(network, fitted, "reading", say), settings.seed, say)
        _set_head(network, head)
    else:
        fitted, calibrated_with = encoded.validation, "validation"
        _set_head(network, _fit_head(network, encoded, settings.seed, say))
        network = _fine_tune(network, encoded, settings, dtype, checkpoints, say)
        # The head stays in float32: rounding would undo its calibration.
        getattr(network, network.base_model_prefix).to(getattr(torch, dtype))
        network.eval()
        logits = _logits(network, _states(network, fitted, "calibrating", say))
    steps = calibration_steps(fitted, logits, settings.calibrate_on)
    scale, shift = fit_platt(steps.logits, steps.targets)
    stacking = fit_stacking(steps, scale, shift) if settings.token_probability else None
    _scale_head(network, scale, shift)
    calibrated = [scale * values + shift for values in logits]
    test = _states(network, encoded.test, "measuring", say)
    held_out = _logits(network, test) if encoded.test else calibrated
    part = encoded.test or fitted
    measured = Measured(
        validation=_scored(fitted, calibrated, stacking),
        held_out=_scored(part, held_out, stacking),
        head_alone=None if stacking is None else _scored(part, held_out, None),
        held_out_is="test" if encoded.test else calibrated_with,
        calibrated_with=calibrated_with,
        calibrated_on=steps.targets_are,
        skipped=skipped,
        questions={
            name: len({one.solution.question for one in those}) for name, those in encoded._asdict().items()
        },
        steps={
            name: sum(one.solution.labelled for one in those) for name, those in encoded._asdict().items()
        },
        seconds=time.monotonic() - begun,
    )
    file = ScorerFile(
        step_token=layout.step_token,
        system_prompt=settings.system_prompt,
        base=_public_name(base),
        tuning=settings.tuning,
        method=methods_of(solutions),
        stacking=stacking,
        metrics=measure(measured, pattern=settings.pattern, seed=settings.seed),
    )
    checkpoints.begin()  # a folder with half of its files is one of an interrupted training
    _save(folder, network, tokenizer, dtype)
    write_card(folder, file, measured, settings, [one.name for one in files], device=str(device), dtype=dtype)
    file.write(folder)
    checkpoints.remove()
    return TrainedScorer(folder, file, skipped)


class EncodedSplit(NamedTuple):
    """Solutions by use, as the model reads them."""

    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]


def _encode(layout: TrimPRMFormat, split: Split, max_tokens: int | None) -> tuple[EncodedSplit, int]:
    """Encodes all solutions; too long ones are left out, never truncated, and counted."""
    skipped, parts = 0, dict[str, list[Encoded]]()
    for part, solutions in split._asdict().items():
        parts[part] = []
        for solution in solutions:
            try:
                found = layout.encode(solution.question, solution.steps, max_tokens=max_tokens)
            except Exception as error:
                if not is_context_full(error):
                    raise InputError(
                        f"the question {solution.question[:80]!r} cannot be encoded: {error}"
                    ) from error
                skipped += 1
                continue
            parts[part].append(Encoded(solution, found.ids, found.step_positions))
        if solutions and not parts[part]:
            raise InputError(
                f"all {len(solutions)} solutions of the {part} questions are longer than {max_tokens} "
                "tokens, the most that the base takes; choose a base with a longer context"
            )
    return EncodedSplit(**parts), skipped


def _dtype(settings: ScorerTraining, device: torch.device) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if device.type == "cuda" else "float32"


def _public_name(base: str) -> str:
    """Names the base without a path of this machine."""
    return Path(base).resolve().name if Path(base).is_dir() else base


_BATCH_TOKENS = 16384


def _states(
    network: Any, encoded: Sequence[Encoded], phase: str, say: Callable[[Heading], None]
) -> list[Any]:
    """Computes the hidden states at the tags, (steps, hidden size) in float32 for each solution."""
    found: list[Any] = [None] * len(encoded)
    done = 0
    shares = _cache_argument(getattr(network, network.base_model_prefix)) is not None
    for batch, shared in _batches(encoded, shares):
        states = _hidden(network, [encoded[at] for at in batch], shared).float().cpu().numpy()
        ends = np.cumsum([len(encoded[at].positions) for at in batch])
        for at, rows in zip(batch, np.split(states, ends[:-1]), strict=True):
            found[at] = rows
        done += len(batch)
        say(Heading(phase, done, len(encoded)))
    return found


def _cache_argument(backbone: Any) -> str | None:
    """Returns how a base names its cache of keys and values; None where it keeps another state."""
    accepted = inspect.signature(backbone.forward).parameters
    names = [name for name in ("cache", "past_key_values") if name in accepted]
    return names[0] if names and not backbone._is_stateful else None


def _batches(encoded: Sequence[Encoded], shares: bool) -> Iterator[tuple[list[int], int]]:
    """Yields which solutions are read together, and how many tokens they begin with in common.

    Solutions of one question share its tokens. They are read apart from the others where that saves more than
    half of all their tokens, as it does for a long question with short solutions.

    Args:
        encoded: The solutions.
        shares: Whether the base can read common tokens once.
    """
    groups, rest = defaultdict[str, list[int]](list), list[int]()
    for at, one in enumerate(encoded):
        groups[one.solution.question].append(at)
    for group in groups.values():
        shared = _shared_tokens([encoded[at] for at in group])
        if shares and shared * (len(group) - 1) > sum(len(encoded[at].ids) for at in group) / 2:
            yield from ((batch, shared) for batch in _batches_by_length(encoded, group))
        else:
            rest += group
    yield from ((batch, 0) for batch in _batches_by_length(encoded, rest))


def _batches_by_length(encoded: Sequence[Encoded], those: Iterable[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for at in sorted(those, key=lambda at: len(encoded[at].ids)):
        if batch and (len(batch) + 1) * len(encoded[at].ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _shared_tokens(encoded: Sequence[Encoded]) -> int:
    """Returns how many tokens all begin with, those up to the first tag at most."""
    first, last = min(one.ids for one in encoded), max(one.ids for one in encoded)
    pairs = enumerate(zip(first, last, strict=False))
    common = next((at for at, (one, other) in pairs if one != other), len(first))
    return min(common, *(one.positions[0] for one in encoded))


def _hidden(network: Any, batch: Sequence[Encoded], shared: int) -> torch.Tensor:
    """Returns the hidden states at the tags of a batch, (steps, hidden size).

    Args:
        network: The base with its head.
        batch: Solutions.
        shared: Tokens that all of them begin with, which are read once.
    """
    device = network.score.weight.device
    ids, mask, (rows, columns) = _padded(batch, shared)
    ids, mask, positions = ids.to(device), mask.to(device), (rows.to(device), columns.to(device))
    with torch.inference_mode():
        if not shared:
            states: torch.Tensor = network.hidden(ids, mask, positions)
            return states
        backbone = getattr(network, network.base_model_prefix)
        cache = DynamicCache(config=backbone.config)
        kept = {_cache_argument(backbone) or "": cache, "use_cache": True}
        backbone(input_ids=torch.tensor([batch[0].ids[:shared]], device=device), **kept)
        cache.batch_repeat_interleave(len(batch))
        whole = torch.cat([mask.new_ones(len(batch), shared), mask], dim=1)
        read = backbone(input_ids=ids, attention_mask=whole, **kept)
        found: torch.Tensor = read.last_hidden_state[positions]
        return found


def _padded(
    batch: Sequence[Encoded], begin: int = 0
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Pads on the right, which no token before the padding attends to; leaves out tokens before ``begin``."""
    longest = max(len(one.ids) for one in batch) - begin
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(batch):
        ids[row, : len(one.ids) - begin] = torch.tensor(one.ids[begin:])
        mask[row, : len(one.ids) - begin] = 1
    rows = torch.tensor([row for row, one in enumerate(batch) for _ in one.positions])
    columns = torch.tensor([position - begin for one in batch for position in one.positions])
    return ids, mask, (rows, columns)


def _logits(network: Any, states: Sequence[Any]) -> list[Floats]:
    """Computes the head's value of each step from its hidden state, one array for each solution."""
    weight = network.score.weight.detach().float().cpu().numpy()[0].astype(np.float64)
    head = Head(weight, float(network.score.bias.detach().float()))
    return [head.values(rows) for rows in states]


def _scored(
    encoded: Sequence[Encoded], logits: Sequence[Floats], stacking: Stacking | None
) -> list[tuple[LabelledSteps, list[float]]]:
    """Joins solutions and the scores that the finished scorer gives their steps."""
    from scipy.special import expit  # type: ignore[import-untyped]

    found = []
    for one, values in zip(encoded, logits, strict=True):
        scores = expit(values).tolist()
        if stacking is not None:
            scores = stacking.scores(scores, one.solution.scorable_steps())
        found.append((one.solution, scores))
    return found


def _rows(encoded: Sequence[Encoded], states: Sequence[Any]) -> tuple[Any, Floats]:
    """Joins the hidden states of all steps with a target, and the targets."""
    known = [[target is not None for target in one.solution.targets] for one in encoded]
    rows = np.concatenate([rows[keep] for rows, keep in zip(states, known, strict=True)])
    targets = [target for one in encoded for target in one.solution.targets if target is not None]
    return rows, np.array(targets, dtype=np.float64)


_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation strengths of the head that are tried."""
_FOLDS = 5
"""Parts of the questions in the cross-validation of a head."""


class Head(NamedTuple):
    """A linear head: weight of shape (hidden size,) and bias."""

    weight: Floats
    bias: float

    def values(self, states: Any) -> Floats:
        """Returns the value of each hidden state, (rows, hidden size)."""
        found: Floats = states.astype(np.float64) @ self.weight + self.bias
        return found


def _fit_head(network: Any, encoded: EncodedSplit, seed: int, say: Callable[[Heading], None]) -> Head:
    """Fits the head, from which tuning starts, on the frozen hidden states of the training questions.

    The strength of regularisation is the one of the least loss on the validation questions.
    """
    rows, targets = _rows(encoded.train, _states(network, encoded.train, "reading", say))
    held_out, wanted = _rows(encoded.validation, _states(network, encoded.validation, "reading", say))
    heads = _heads(rows, targets, seed)
    return min(heads, key=lambda head: cross_entropy(head.values(held_out), wanted))


def _cross_fit(
    encoded: Sequence[Encoded], states: Sequence[Any], seed: int, say: Callable[[Heading], None]
) -> tuple[Head, list[Floats]]:
    """Fits the head on all solutions, and rates each by a head that has not learned from its question.

    The strength of regularisation is the one of the least loss of such values. Calibration and combination
    are fitted on them (stacked generalization, Wolpert 1992), so that all questions serve both.

    Args:
        encoded: Solutions of all questions but the test's.
        states: Their hidden states.
        seed: Draws the folds.
        say: Receives the progress.

    Returns:
        The head, and the values of each solution's steps.
    """
    folds = np.array(folds_by_question([one.solution for one in encoded], _FOLDS, seed=seed))
    values: list[list[Any]] = [[None] * len(encoded) for _ in _STRENGTHS]
    for fold in range(folds.max() + 1):
        others = np.flatnonzero(folds != fold).tolist()
        rows = _rows([encoded[at] for at in others], [states[at] for at in others])
        for rated, head in zip(values, _heads(*rows, seed), strict=True):
            for at in np.flatnonzero(folds == fold).tolist():
                rated[at] = head.values(states[at])
        say(Heading("fitting the head", fold + 1, int(folds.max()) + 1))
    losses = [cross_entropy(*_rows(encoded, rated)) for rated in values]
    best = int(np.argmin(losses))
    return next(islice(_heads(*_rows(encoded, states), seed), best, None)), values[best]


def _heads(states: Any, targets: Floats, seed: int) -> Iterator[Head]:
    """Fits a head by logistic regression with each strength of regularisation.

    A soft target v counts as a right step of weight v and a wrong one of weight 1 - v, whose loss is the
    cross entropy with v.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

    scaler = StandardScaler().fit(states)
    rows, right, weights = _weighted(scaler.transform(states), targets)
    model = LogisticRegression(max_iter=500, warm_start=True, random_state=seed)
    for strength in _STRENGTHS:
        model.set_params(C=strength).fit(rows, right, sample_weight=weights)
        weight = model.coef_[0].astype(np.float64) / scaler.scale_
        yield Head(weight, float(model.intercept_[0]) - float(weight @ scaler.mean_))


def _weighted(states: Any, targets: Floats) -> tuple[Any, Any, Any]:
    soft = (targets > 0) & (targets < 1)
    rows = np.concatenate([states, states[soft]])
    right = np.concatenate([targets > 0, np.zeros(int(soft.sum()), dtype=bool)])
    weights = np.concatenate([np.where(soft, targets, 1.0), 1 - targets[soft]])
    return rows, right, weights


def cross_entropy(logits: Floats, targets: Floats) -> float:
    """Computes the mean cross entropy of sigmoids of ``logits`` with soft targets, in nats."""
    return float((np.logaddexp(0, logits) - targets * logits).mean())


def _set_head(network: Any, head: Head) -> None:
    with torch.no_grad():
        network.score.weight.copy_(torch.tensor(head.weight[None]))
        network.score.bias.copy_(torch.tensor([head.bias]))


def _scale_head(network: Any, scale: float, shift: float) -> None:
    with torch.no_grad():
        network.score.weight.mul_(scale)
        network.score.bias.mul_(scale).add_(shift)


class _Solutions(torch.utils.data.Dataset[Encoded]):
    def __init__(self, encoded: Sequence[Encoded]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Encoded:
        return self._encoded[index]


def _collate(batch: Sequence[Encoded]) -> dict[str, Any]:
    ids, mask, (rows, columns) = _padded(batch)
    targets = [target for one in batch for target in one.solution.targets]
    keep = torch.tensor([target is not None for target in targets])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "positions": (rows[keep], columns[keep]),
        "targets": torch.tensor([target for target in targets if target is not None]),
    }


class _StepTrainer(Trainer):
    """Trains on the cross entropy with the targets, at the tags that have one."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Computes the mean over the tags of a batch."""
        targets = inputs["targets"]
        values = model(**{name: value for name, value in inputs.items() if name != "targets"})
        loss = torch.nn.functional.binary_cross_entropy_with_logits(values[:, 0].float(), targets.float())
        return (loss, values) if return_outputs else loss


class _Reporter(TrainerCallback):
    def __init__(self, say: Callable[[Heading], None]) -> None:
        self._say = say

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._say(Heading("training", state.global_step, state.max_steps))


def _fine_tune(
    network: Any,
    encoded: EncodedSplit,
    settings: ScorerTraining,
    dtype: str,
    checkpoints: _Checkpoints,
    say: Callable[[Heading], None],
) -> Any:
    """Trains adapters or all weights, keeps the state of the least validation loss, and merges it."""
    if settings.gradient_checkpointing:
        # Its older name is deprecated where there is the newer one.
        getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)()
        network.enable_input_require_grads()
    if settings.tuning == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(settings.seed)
        adapters = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            lora_dropout=0.05,
            target_modules="all-linear",
            exclude_modules=["score"],
            modules_to_save=["score"],
        )
        network = get_peft_model(network, adapters)
    steps_an_epoch = -(-len(encoded.train) // settings.batch_size)
    every = max(1, steps_an_epoch // settings.evaluations)
    on_cpu = next(network.parameters()).device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(checkpoints.path),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate or LEARNING_RATES[settings.tuning],
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        warmup_steps=0.1,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        prediction_loss_only=True,
        label_names=["targets"],
        remove_unused_columns=False,
        use_cpu=on_cpu,
        bf16=dtype == "bfloat16",
        seed=settings.seed,
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # positions index a whole batch, which replicas would split
    trainer = _StepTrainer(
        model=network,
        args=arguments,
        train_dataset=_Solutions(encoded.train),
        eval_dataset=_Solutions(encoded.validation),
        data_collator=_collate,
        callbacks=[EarlyStoppingCallback(settings.patience), _Reporter(say)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    trainer.train(resume_from_checkpoint=checkpoints.begin())
    return network.merge_and_unload() if settings.tuning == "lora" else network


class _Checkpoints:
    """Checkpoints within a scorer's folder, with the settings they belong to.

    Args:
        folder: Folder of the scorer: not there yet, empty, or of an interrupted training.
        settings: Settings of the training.
        base: Model to be trained.
        solutions: All labelled solutions.

    Raises:
        SettingsError: The folder holds something else, or a training with other settings.
    """

    def __init__(
        self, folder: Path, settings: ScorerTraining, base: str, solutions: Sequence[LabelledSteps]
    ) -> None:
        self.path = folder / UNFINISHED
        self._settings = self.path / "settings.json"
        digest = hashlib.sha256(repr(solutions).encode("utf-8", "surrogatepass")).hexdigest()
        self._text = json.dumps({**asdict(settings), "base": base, "labels": digest}, sort_keys=True)
        if folder.exists() and not folder.is_dir():
            raise SettingsError(f"{folder} is a file; name a folder that is not there yet")
        held = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
        if held and UNFINISHED not in held:
            raise SettingsError(f"{folder} is not empty; name a folder that is not there yet")
        if held and (not self._settings.is_file() or self._settings.read_text("utf-8") != self._text):
            raise SettingsError(
                f"{folder} holds an interrupted training with other settings or labels; remove it, or name "
                "another folder"
            )

    def begin(self) -> bool:
        """Makes the folder; returns whether it holds a checkpoint to resume from."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._settings.write_text(self._text, "utf-8")
        return any(self.path.glob("checkpoint-*"))

    def remove(self) -> None:
        """Removes the checkpoints of a finished training."""
        shutil.rmtree(self.path, ignore_errors=True)


def _save(folder: Path, network: Any, tokenizer: Any, dtype: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    network.config.id2label = {0: "right"}
    network.config.label2id = {"right": 0}
    network.config.dtype = dtype
    network.config.use_cache = True
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
