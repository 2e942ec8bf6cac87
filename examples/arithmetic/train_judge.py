"""The training of the process reward model, on solutions that small and large wrote.

It begins as the large model, which knows what should come next, with two layers on top, which learn to
compare that with what was written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from trim_graph.adapters.prm_head import Qwen2ForProcessRewardModel

from .corpus import SO_FAR, Batch, Judged, JudgedPools, Mixture, draw_training_problem, stream
from .evaluate import write_solutions
from .optimizer import Schedule, optimise
from .problems import DELIMITER, expected_step
from .tokenizer import PRM_SYSTEM, STEP, STEP_END
from .workshop import Workshop, compiled

JUDGE_LAYERS = 6
JUDGE_SCHEDULES = (
    Schedule(steps=2000, rows=64),
    # A second, slower descent: AUC on long chains goes on rising.
    Schedule(steps=700, rows=64, matrix_rate=0.008, rate=0.0012, decay_from=0.0),
)
JUDGED_SOLUTIONS = 20_000
EARLY = 0.2
"""Share of the first schedule after which a weaker one is kept, for the study of a worse judge."""
SAMPLED = (
    ("small", 0.0, 0.2),
    ("small", 0.7, 0.3),
    ("small", 1.0, 0.25),
    ("large", 0.7, 0.1),
    ("large", 1.2, 0.15),
)
"""Who writes the judge's training solutions: model, temperature, share."""


def sample_judged(shop: Workshop, models: dict[str, Any], count: int) -> list[Judged]:
    """Let the solvers solve training problems, and work out the right step at every place."""
    judged: list[Judged] = []
    for source in range(len(SAMPLED)):
        judged += sample_source(shop, models[SAMPLED[source][0]], source, count)
    right = [step == wanted for one in judged for step, wanted in zip(one.steps, one.expected, strict=True)]
    shop.log(f"prm: {len(judged)} solutions, {right.count(False)} wrong steps of {len(right)}")
    return judged


def sample_source(shop: Workshop, model: Any, source: int, count: int) -> list[Judged]:
    """Sample one entry of `SAMPLED`; each has its own seed, so their order does not matter."""
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


def new_judge(large: Any, ids: dict[str, int]) -> Any:
    """Build a process reward model that begins as the large model with layers on top that add nothing yet."""
    settings = {"num_labels": 2, "tie_word_embeddings": False, "num_hidden_layers": JUDGE_LAYERS}
    config = type(large.config)(**{**large.config.to_dict(), **settings, "layer_types": None})
    config.architectures = ["Qwen2ForProcessRewardModel"]
    model: Any = Qwen2ForProcessRewardModel(config)
    model.model.load_state_dict(large.model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in model.model.layers[large.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        # To the large model the step token is new, and it stands where a blank line was.
        embeddings = model.model.embed_tokens.weight
        embeddings[ids[STEP]] = embeddings[ids[STEP_END]]
    return model


class Lesson(torch.nn.Module):
    """What the judge is taught; besides verdicts, what leads up to them.

    The sum of four mean losses: the verdict at every step token; the verdict so far at every token; after
    the large model's layers the next token wherever it is right, which keeps what they know; one layer
    later whether a token is the first wrong one of its step, through a probe that is thrown away.

    Args:
        judge: The model to train.
        solver_layers: How many of its layers come from the large model.
    """

    def __init__(self, judge: Any, solver_layers: int) -> None:
        super().__init__()
        self.judge, self.solver_layers = judge, solver_layers
        self.probe = torch.nn.Linear(judge.config.hidden_size, 2)
        self._backbone = [compiled(judge.model)]  # in a list: not a module of its own

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch of `JudgedPools`."""
        classes = batch.targets
        out = self._backbone[0](input_ids=batch.ids, use_cache=False, output_hidden_states=True)
        wanted = classes != -100
        logits = self.judge.score(out.last_hidden_state[wanted])
        each = functional.cross_entropy(logits, classes[wanted] % SO_FAR, reduction="none")
        verdict = classes[wanted] < SO_FAR
        next_token, first_wrong = self._next_token(batch, out), self._first_wrong(batch, out)
        return each[verdict].mean() + each[~verdict].mean() + next_token + first_wrong

    def _next_token(self, batch: Batch, out: Any) -> torch.Tensor:
        right = batch.targets[:, 1:] == SO_FAR + 1
        states = self.judge.model.norm(out.hidden_states[self.solver_layers][:, :-1][right])
        return functional.cross_entropy(
            functional.linear(states, self.judge.model.embed_tokens.weight), batch.ids[:, 1:][right]
        )

    def _first_wrong(self, batch: Batch, out: Any) -> torch.Tensor:
        before = functional.pad(batch.targets[:, :-1], (1, 0), value=-100)
        open_still = (batch.targets != -100) & (before != SO_FAR)
        states = out.hidden_states[self.solver_layers + 1][open_still]
        states = functional.rms_norm(states, states.shape[-1:])
        return functional.cross_entropy(self.probe(states), batch.targets[open_still] % SO_FAR)


def train_judge(
    shop: Workshop, large: Any, judged: list[Judged], schedules: Sequence[Schedule] = JUDGE_SCHEDULES
) -> Any:
    """Train the process reward model from the large one; save it, and an early state of it."""
    torch.manual_seed(shop.seed)
    model = new_judge(large, shop.tokenizer.get_vocab())
    early = {round(EARLY * schedules[0].steps): lambda: shop.save(model, "prm_early")}
    for number, schedule in enumerate(schedules):
        lesson = Lesson(model, large.config.num_hidden_layers).to(shop.device)
        pools = JudgedPools(
            shop.tokenizer,
            judged,
            system=PRM_SYSTEM,
            seed=shop.seed + 1000 * number,
            steps=schedule.steps,
            rows=schedule.rows,
        )
        optimise(
            lesson,
            stream(pools, schedule.steps, shop.workers),
            lesson,
            schedule,
            device=shop.device,
            log=lambda text, number=number: shop.log(f"prm, phase {number + 1}: {text}"),  # type: ignore[misc]
            at={} if number else early,
        )
    shop.save(model, "prm")
    return model
