"""Trains the three example models from scratch: ``python -m trim_graph.examples.arithmetic.training.train``.

The order is small, large, judge (the process reward model). The judge starts from the large model and is
trained on solutions sampled from both, labelled by the exact check of `problems.expected_step`. Numbers of
steps are fixed, not seconds, so the same seed gives the same weights up to the rounding of the machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.examples.arithmetic import WEIGHTS, problems
from trim_graph.examples.arithmetic.problems import Split

from .card import write_card
from .corpus import Batch, LanguagePools, Mixture, stream
from .evaluate import judge_metrics, judge_solutions, solver_metrics, write_solutions
from .optimizer import Schedule, optimise
from .tokenizer import END_OF_TEXT, TURN_END, VOCABULARY, build_tokenizer, load_tokenizer
from .workshop import Workshop, compiled

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SPLITS: tuple[Split, ...] = ("standard", "hard", "words")


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a training: its schedule and what it draws."""

    schedule: Schedule
    mixture: Mixture


@dataclass(frozen=True, slots=True)
class Recipe:
    """Size and phases of one solver; heads are 32 wide, a width that vLLM's CPU build accepts."""

    hidden: int
    layers: int
    intermediate: int
    phases: tuple[Phase, ...]


# The small model sees few word problems and stops early: that is what makes it small.
RECIPES = {
    "small": Recipe(64, 2, 64, (Phase(Schedule(steps=1100, rows=64), Mixture(words=0.16)),)),
    "large": Recipe(
        96,
        4,
        256,
        (
            Phase(Schedule(steps=5000, rows=64), Mixture()),
            # Conversations cost twice the tokens, so they come late and briefly.
            Phase(
                Schedule(steps=500, rows=64, matrix_rate=0.005, rate=0.001, decay_from=0.1),
                Mixture(earlier_turns=0.4, full_earlier_turns=True),
            ),
        ),
    ),
}


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Builds an untrained Qwen2 language model of the recipe's size."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids = tokenizer.get_vocab()
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,
        num_key_value_heads=recipe.hidden // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids[TURN_END],
        pad_token_id=ids[END_OF_TEXT],
    )
    return Qwen2ForCausalLM(config)


def loss_of(model: Any, head: Any) -> Callable[[Batch], torch.Tensor]:
    """Returns the mean cross-entropy of ``head`` on the backbone's states, only where there is a target."""
    import torch

    backbone = compiled(model.model)

    def loss(batch: Batch) -> torch.Tensor:
        wanted = batch.targets != -100
        states = backbone(input_ids=batch.ids, use_cache=False).last_hidden_state
        return torch.nn.functional.cross_entropy(head(states[wanted]), batch.targets[wanted])

    return loss


def train_solver(shop: Workshop, name: str, recipe: Recipe) -> Any:
    """Trains ``small`` or ``large`` and saves it."""
    import torch

    torch.manual_seed(shop.seed)
    model = new_model(recipe, shop.tokenizer).to(shop.device)
    loss = loss_of(model, model.lm_head)
    for number, phase in enumerate(recipe.phases):
        run_phase(shop, name, number, phase, model, loss)
    shop.save(model, name)
    return model


def run_phase(shop: Workshop, name: str, number: int, phase: Phase, model: Any, loss: Any) -> None:
    """Trains ``model`` in place through one phase of its recipe; later phases grow no chains."""
    schedule = phase.schedule
    pools = LanguagePools(
        shop.tokenizer,
        seed=shop.seed + (name == "large") + 1000 * number,
        steps=schedule.steps,
        rows=schedule.rows,
        mixture=phase.mixture,
        grow=number == 0,
    )
    optimise(
        model,
        stream(pools, schedule.steps, shop.workers),
        loss,
        schedule,
        device=shop.device,
        log=lambda text: shop.log(f"{name}, phase {number + 1}: {text}"),
    )


def measure(shop: Workshop, n: int) -> dict[str, Any]:
    """Measures all models on ``n`` test problems of each split."""
    from trim_graph.adapters.prm.heads import load_prm

    models = {name: shop.load(name) for name in ("small", "large")}
    metrics: dict[str, Any] = {name: {} for name in ("small", "large", "prm", "prm_early")}
    for split in SPLITS:
        held_out = problems(split, n)
        solutions = {name: write_solutions(model, shop.tokenizer, held_out) for name, model in models.items()}
        for name in models:
            metrics[name][split] = solver_metrics(held_out, solutions[name])
        for name in ("prm", "prm_early"):
            import torch

            judge = load_prm(str(shop.out / name), device=torch.device(shop.device), dtype="float32")
            scores = judge_solutions(judge, shop.tokenizer, held_out, solutions["small"])
            metrics[name][split] = judge_metrics(held_out, solutions["small"], scores)
    return metrics


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="folder that gets small, large, prm, prm_early"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw training problems")
    parser.add_argument("--only", choices=("small", "large", "prm", "measure"), help="one part of the work")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all numbers of steps, for a try")
    parser.add_argument("--measure-on", type=int, default=1000, metavar="N", help="test problems a split")
    return parser


def main() -> None:
    """Trains, measures, and writes the model card."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    from .train_judge import JUDGE_SCHEDULE, JUDGED_SOLUTIONS, sample_judged, train_judge

    args = _parser().parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = (
        build_tokenizer(args.seed) if args.only in (None, "small") else load_tokenizer(args.out / "small")
    )
    shop = Workshop(args.out, args.seed, device, args.workers, tokenizer)

    def scaled(schedule: Schedule) -> Schedule:
        return replace(schedule, steps=max(10, round(schedule.steps * args.scale)))

    seconds: dict[str, int] = {}
    for name in ("small", "large", "prm"):
        if args.only not in (None, name):
            continue
        begun = time.monotonic()
        if name == "prm":
            solvers = {solver: shop.load(solver) for solver in RECIPES}
            judged = sample_judged(shop, solvers, round(JUDGED_SOLUTIONS * args.scale))
            train_judge(shop, solvers["large"], judged, scaled(JUDGE_SCHEDULE))
        else:
            phases = tuple(replace(p, schedule=scaled(p.schedule)) for p in RECIPES[name].phases)
            train_solver(shop, name, replace(RECIPES[name], phases=phases))
        seconds[name] = round(time.monotonic() - begun)
        shop.log(f"{name}: {seconds[name]} s")
    if args.only in (None, "measure"):
        metrics = measure(shop, args.measure_on)
        shop.log(json.dumps(metrics, indent=1))
        write_card(args.out / "README.md", metrics, n=args.measure_on, seed=args.seed, seconds=seconds)


if __name__ == "__main__":
    main()
