"""The training of the process reward model, on solutions that small and large wrote.

It begins as the large model, which knows what should come next, with layers on top that compare that with
what was written (`new_judge`). Only these are trained.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.nn import functional

from trim_graph.examples.arithmetic.problems import DELIMITER, expected_step

from .corpus import SO_FAR, Batch, Judged, JudgedPools, Mixture, draw_training_problem, stream
from .evaluate import write_solutions
from .new_judge import LAYERS_ON_TOP, carried, layers_on_top, new_judge
from .optimizer import Schedule, optimise
from .tokenizer import PRM_SYSTEM, STEP
from .workshop import Workshop, compiled

JUDGE_SCHEDULE = Schedule(steps=1000, rows=64)
JUDGED_SOLUTIONS = 20_000
EARLY = 0.1
"""Share of the steps after which a weaker one is kept, for the study of a worse judge."""
SAMPLED = (
    ("small", 0.0, 0.2),
    ("small", 0.7, 0.3),
    ("small", 1.0, 0.25),
    ("large", 0.7, 0.1),
    ("large", 1.2, 0.15),
)
"""Who writes the judge's training solutions: model, temperature, share."""


def sample_judged(shop: Workshop, models: dict[str, Any], count: int) -> list[Judged]:
    """Lets the solvers solve training problems, and works out the right step at every place."""
    judged: list[Judged] = []
    for source in range(len(SAMPLED)):
        judged += sample_source(shop, models[SAMPLED[source][0]], source, count)
    right = [step == wanted for one in judged for step, wanted in zip(one.steps, one.expected, strict=True)]
    shop.log(f"prm: {len(judged)} solutions, {right.count(False)} wrong steps of {len(right)}")
    return judged


def sample_source(shop: Workshop, model: Any, source: int, count: int) -> list[Judged]:
    """Samples one entry of `SAMPLED`; each has its own seed, so their order does not matter."""
    _, temperature, share = SAMPLED[source]
    torch.manual_seed(1000 * shop.seed + source)
    drawn = [
        draw_training_problem(random.Random(f"{shop.seed}:judge:{source}:{index}"), Mixture(hard=0.25))
        for index in range(round(share * count))
    ]
    texts = write_solutions(model, shop.tokenizer, drawn, temperature=temperature, rows=500)
    judged: list[Judged] = []
    for problem, text in zip(drawn, texts, strict=True):
        # A step token written by the model itself would shift the labels.
        steps = [step.replace(STEP, "") for step in text.split(DELIMITER)]
        expected = [expected_step(problem, steps[:index]) for index in range(len(steps))]
        judged.append(Judged(problem.question, steps, expected))
    return judged


class Lesson(torch.nn.Module):
    """Training loss of the layers on top of the large model's: the verdicts, and auxiliary targets.

    The sum of three mean losses: the verdict at every step token; the verdict so far at every token; after
    the first layer on top whether a token is the first wrong one of its step, through a probe that is thrown
    away. What comes from the large model stays as it is.

    Args:
        judge: The model to train.
    """

    def __init__(self, judge: Any) -> None:
        super().__init__()
        self.judge = judge
        self.probe = torch.nn.Linear(judge.config.hidden_size, 2)
        self._backbone = [compiled(judge.model)]  # in a list: not a module of its own
        on_top = layers_on_top(judge)
        for part in (judge.model.embed_tokens, *judge.model.layers[: -len(on_top)]):
            part.requires_grad_(False)
        # The smallest step of the optimiser would drown the codes, which are tiny.
        reads_only = torch.ones(judge.config.hidden_size, 1)
        reads_only[carried(judge)] = 0.0
        for layer in on_top:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.register_hook(lambda gradient: gradient * reads_only.to(gradient.device))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the loss of a batch of `JudgedPools`."""
        classes = batch.targets
        out = self._backbone[0](input_ids=batch.ids, use_cache=False, output_hidden_states=True)
        wanted = classes != -100
        logits = self.judge.score(out.last_hidden_state[wanted])
        each = functional.cross_entropy(logits, classes[wanted] % SO_FAR, reduction="none")
        verdict = classes[wanted] < SO_FAR
        return each[verdict].mean() + each[~verdict].mean() + self._first_wrong(batch, out)

    def _first_wrong(self, batch: Batch, out: Any) -> torch.Tensor:
        before = functional.pad(batch.targets[:, :-1], (1, 0), value=-100)
        open_still = (batch.targets != -100) & (before != SO_FAR)
        states = out.hidden_states[-LAYERS_ON_TOP][open_still]
        states = functional.rms_norm(states, states.shape[-1:])
        return functional.cross_entropy(self.probe(states), batch.targets[open_still] % SO_FAR)


def train_judge(shop: Workshop, large: Any, judged: list[Judged], schedule: Schedule = JUDGE_SCHEDULE) -> Any:
    """Trains the process reward model from the large one; saves it, and an early state of it."""
    torch.manual_seed(shop.seed)
    model = new_judge(large.to("cpu"), shop.tokenizer, judged)
    lesson = Lesson(model).to(shop.device)
    pools = JudgedPools(
        shop.tokenizer, judged, system=PRM_SYSTEM, seed=shop.seed, steps=schedule.steps, rows=schedule.rows
    )
    optimise(
        lesson,
        stream(pools, schedule.steps, shop.workers),
        lesson,
        schedule,
        device=shop.device,
        log=lambda text: shop.log(f"prm: {text}"),
        at={round(EARLY * schedule.steps): lambda: shop.save(model, "prm_early", half=True)},
    )
    shop.save(model, "prm", half=True)
    return model
