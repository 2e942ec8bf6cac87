"""Settings of labels, of trainings and of plans; the options of their commands read them.

Nothing heavy is imported here, for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trim_graph.bounds import NOT_NEGATIVE, POSITIVE, SHARE, Bound, Bounded, one_of, setting

Method = Literal["monte_carlo", "advantage", "agreement", "labelled"]
Generator = Literal["small", "large"]
Target = Literal["soft", "hard"]
Tuning = Literal["head", "lora", "full"]
Dtype = Literal["auto", "float32", "bfloat16"]
Calibration = Literal["auto", "value", "label"]

_PART = "choose a share of the questions below 1, such as 0.15"


@dataclass(frozen=True, kw_only=True)
class LabelSettings(Bounded):
    """Settings of `trim_graph.training.step_labels.StepLabeller`.

    Raises:
        SettingsError: A value is out of its bound, or settings contradict each other.
    """

    method: Method = "monte_carlo"
    """How a step gets its target."""
    generators: tuple[Generator, ...] = setting(("small",), one_of(Generator))
    """Models whose rollouts are labelled."""
    rollouts: int = setting(4, POSITIVE, help="Solutions of each question by each generator.")
    """Equal ones are labelled once."""
    continuations: int = setting(8, POSITIVE, help="Most continuations of a step's prefix.")
    batch: int = setting(4, POSITIVE)
    """Continuations of a prefix that are made at a time, before the rule of ``width`` looks again."""
    width: float = setting(
        0.5, SHARE, help="They end early where the 95 % interval of the share is as narrow as this."
    )
    """The interval is Wilson's, around the share of continuations that end right."""
    target: Target = setting(
        "hard",
        one_of(Target),
        help="hard: 1 before the first lost step, 0 there; soft: the share that ends right.",
    )
    """Hard ones trained the better scorer in the arithmetic world, and do so after filtering in "Lessons"
    (arXiv 2501.07301)."""
    tolerance: int = setting(
        0, NOT_NEGATIVE, help="With hard: so many steps before the first lost one keep the share."
    )
    """The search tends to blame a step too late (SCAN, arXiv 2509.16548, where 2 was best)."""
    reweight: bool = setting(
        True, help="Divide a share that is a target by that of the question's rollouts; 1 at most."
    )
    """As `trim_graph.training.step_labels.reweighted` does."""
    places: int = setting(
        3, POSITIVE, help="With advantage: steps of a solution that the large model rewrites."
    )
    min_confidence: float = setting(
        0.0, SHARE, help="Drop questions that the small model solves in a smaller share of its rollouts."
    )
    """Their labels are mostly errors of the small model (SCAN, whose authors drop below 0.75). Questions that
    it never solves are dropped in any case."""
    consensus: bool = setting(False, help="Drop solutions of which the judge finds another first wrong step.")
    """From "Lessons" (arXiv 2501.07301)."""
    agreement: float = setting(0.5, SHARE, help="The judge disagrees with a step below this probability.")
    seed: int = 0
    """Draws the places of ``advantage``."""
    concurrency: int = setting(64, POSITIVE, help="Most runs under way at once.")

    def __post_init__(self) -> None:
        from trim_graph.errors import SettingsError  # not above: it loads langchain_core

        super().__post_init__()
        if self.method not in ("monte_carlo", "advantage", "agreement"):
            raise SettingsError(
                f"method is {self.method!r}: choose monte_carlo, advantage or agreement; files of labelled "
                "solutions are read by read_labels"
            )
        if self.tolerance and self.target == "soft":
            raise SettingsError(
                f"tolerance is {self.tolerance}, with target {self.target!r}: choose 0, or target hard"
            )
        if self.consensus and self.method == "agreement":
            raise SettingsError("consensus compares another method with agreement: choose monte_carlo")

    @property
    def judged(self) -> bool:
        """Whether a judge reads the solutions."""
        return self.consensus or self.method == "agreement"

    @property
    def continued(self) -> bool:
        """Whether the small model continues prefixes."""
        return self.method != "agreement"


@dataclass(frozen=True, kw_only=True)
class ScorerTraining(Bounded):
    """Settings of `trim_graph.training.scorer.train_scorer`.

    Raises:
        SettingsError: A value is out of its bound.
    """

    tuning: Tuning = setting(
        "head",
        one_of(Tuning),
        help="What is trained: a head on the frozen base, LoRA adapters too, or all weights.",
    )
    validation: float = setting(
        0.15,
        Bound(lambda value: 0 < value < 1, _PART, "g"),
        help="Share of the questions for early stopping and calibration of lora and full.",
    )
    test: float = setting(
        0.15,
        Bound(lambda value: 0 <= value < 1, _PART, "g"),
        help="Share of the questions for the metrics of the card.",
    )
    """0: they are cross-validated for a head; of tuned weights they are of the validation questions."""
    epochs: float = setting(
        3.0,
        Bound(lambda value: value > 0, "choose a number above 0", "g"),
        help="Most passes over the solutions, for lora and full.",
    )
    learning_rate: float | None = setting(
        None,
        Bound(lambda value: 0 < value < float("inf"), "choose a number above 0, such as 0.0001"),
        help="Peak; default: 1e-4 for lora, 1e-5 for full.",
    )
    batch_size: int = setting(8, POSITIVE, help="Solutions in a batch.")
    patience: int = setting(3, POSITIVE, help="Looks at the validation questions without improvement.")
    """Training ends after so many in a row."""
    evaluations: int = setting(4, POSITIVE)
    """Evaluations on the validation questions in an epoch."""
    lora_rank: int = setting(16, POSITIVE, help="Rank of the adapters.")
    gradient_checkpointing: bool = setting(False, help="Less memory, more time.")
    """Whether activations are computed again in the backward pass."""
    device: str = setting("auto", help="auto, cpu, cuda or cuda:1.")
    """``auto``: CUDA where there is one."""
    dtype: Dtype = setting("auto", one_of(Dtype), help="auto: bfloat16 on CUDA, else float32.")
    step_token: str | None = setting(None, help="Token after each step; default: the tokenizer's eos token.")
    system_prompt: str | None = setting(
        None, help="First turn of the chat; default: that of the chat template."
    )
    max_tokens: int | None = setting(
        None, POSITIVE, help="Longest solution, others are left out; default: what the base takes."
    )
    calibrate_on: Calibration = setting(
        "auto", one_of(Calibration), help="auto: labels, but values for the methods advantage and agreement."
    )
    """Target of the calibration. The values of those methods are no probability that a step is right."""
    token_probability: bool = setting(
        True,
        help="Combine scores with the small model's token probabilities where that improves them.",
    )
    """It is the mean of a step's tokens; see `trim_graph.training.scorer_card.fit_stacking`."""
    pattern: str | None = setting(
        None, help="Regular expression that finds the kind of a step, for the card."
    )
    """For AUC within a kind; None: operations in the arithmetic world, else marks of mathematics."""
    seed: int = setting(0, help="Draws held-out questions, batches and adapters.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None:
            from trim_graph.evaluation.scorer_metrics import compiled_pattern

            compiled_pattern(self.pattern)


@dataclass(frozen=True)
class Training(Bounded):
    """Hyperparameters of `trim_graph.training.ppo.train`.

    Raises:
        SettingsError: A value is out of its bound, or there is nothing to do.
    """

    simulated_steps: int = setting(100_000, NOT_NEGATIVE, help="Most decisions on the simulator.")
    """0 trains on rollouts alone."""
    steps: int = setting(200_000, NOT_NEGATIVE, help="Most decisions on rollouts of the models.")
    """0 trains on the simulator alone."""
    rows: int = setting(64, POSITIVE)
    """Questions side by side."""
    rollout: int = setting(32, POSITIVE)
    """Decisions of each row between two updates."""
    batch: int = setting(512, POSITIVE)
    """Decisions in a minibatch."""
    epochs: int = setting(8, POSITIVE)
    """Passes over them."""
    learning_rate: float = setting(1e-3, NOT_NEGATIVE)
    """Learning rate of Adam."""
    entropy: float = setting(0.003, NOT_NEGATIVE)
    """Weight of the entropy bonus."""
    every: int = setting(4, POSITIVE)
    """Updates between two evaluations on the validation questions."""
    patience: int = setting(10, POSITIVE, help="Looks at the validation questions without improvement.")
    """A phase ends after so many."""
    window: int = setting(16, POSITIVE)
    """Most steps in the input of the sequence policy."""
    width: int = setting(32, POSITIVE)
    """Width of its rows, or of the hidden layers of the aggregate policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.steps or self.simulated_steps):
            from trim_graph.errors import SettingsError

            raise SettingsError("training: steps and simulated_steps are both 0; there is nothing to do")


@dataclass(frozen=True)
class Terms(Bounded):
    """Costs of decisions for `trim_graph.training.planner.solve`, and what a policy knows when it decides.

    A right solution gives the reward `trim_graph.policies.pomdp.REWARD`.

    Raises:
        SettingsError: A cost is negative.
    """

    cost_per_token: float = setting(0.0, NOT_NEGATIVE)
    """Reward that a large token costs."""
    cost_per_call: float = setting(0.0, NOT_NEGATIVE, help="Reward that a call of the large model costs.")
    cost_per_draft: float = setting(
        0.0, NOT_NEGATIVE, help="Reward that a draft and its score cost; a handover saves it."
    )
    knows_end: bool = True
    """Whether the policy knows that the solution ends with the draft, as in the graph."""
    handover: bool = setting(True, help="Whether all that remains may be handed over.")
