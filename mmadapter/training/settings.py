"""Settings of a training: optimizer, engine, how often it validates, saves and writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from mmadapter.settings import Register, choice, listing, number, plain

REFERENCE_BATCH = 256  # samples a step that base rates are stated for
# By the data's size, where a setting is null.
LARGEST_BATCH, BATCHES_AT_LEAST = 32, 8  # the batch is a power of two up to 32, and up to an eighth of the samples
PASSES, FEWEST_STEPS, MOST_STEPS = 3, 60, 2000  # steps: three passes over the samples, between these two
WARMUP_SHARE = 0.05  # of the run
LARGEST_MICRO_BATCH = 8
MOST_SAMPLES = 1_000_000  # in a step: more is a slip, and would be drawn before anybody is told


@dataclass
class OptimizerConf:
    """AdamW, learning rate, schedule, batch (V1 paper, section 4.1)."""

    lr: float | None = number(None, above=0)  # actual rate, whatever the batch; null = what base_lr says
    # lr and base_lr null = the smallest of the rates that the adapter's methods have for small batches
    base_lr: float | None = number(9.0e-3, above=0)  # actual rate = base_lr x batch_size / 256; paper: 9e-3
    min_lr: float = number(0.0, at_least=0)  # actual rate at the end of the half cosine; paper: 0
    epochs: float | None = number(5.0, above=0)  # passes over the samples; paper: 5, 30; null = by the data's size
    warmup_epochs: float | None = number(2.0, at_least=0)  # of linear warm-up; paper: 2; null = 5 % of the run
    steps: int | None = number(None, at_least=1)  # optimizer steps of the run, in place of epochs; null = epochs
    warmup_steps: int | None = number(None, at_least=0)  # of linear warm-up, in place of warmup_epochs; null = those
    # samples a step, over all devices and micro-batches; paper: 64; null = by the data's size
    batch_size: int | None = number(64, at_least=1, at_most=MOST_SAMPLES)
    # samples in memory at a time; it divides what a step has of one source; null = up to 8. It changes no more than
    # rounding, so a run may continue with another one
    micro_batch_size: int | None = number(8, at_least=1, at_most=MOST_SAMPLES, influence=False)
    # tokens in memory at a time: a micro-batch that has more is cut, a longer sample stands alone; null = any number.
    # It changes no more than rounding
    micro_batch_tokens: int | None = number(2048, at_least=1, influence=False)
    betas: list[float] = listing(0.9, 0.95)  # of AdamW; paper: 0.9, 0.95
    weight_decay: float = number(0.02, at_least=0)  # of AdamW; vectors and biases have none; paper: 0.02
    # largest gradient norm of a group; null = no clipping, as in the paper
    clip_norm: float | None = number(None, above=0)
    # steps skipped for NaN or infinity before a run stops
    max_nonfinite_steps: int = number(10, at_least=0, influence=False)

    def sized(self, samples: int, methods_lr: float) -> SizedOptimizerConf:
        """These settings for so many training samples, with batch, micro-batch and actual rate as numbers.

        The length is in `steps`, where neither steps nor epochs are given. `methods_lr` is the rate where none is set.
        """
        batch = self.batch_size or power_of_two(min(LARGEST_BATCH, samples // BATCHES_AT_LEAST))
        micro = self.micro_batch_size or next(n for n in range(LARGEST_MICRO_BATCH, 0, -1) if batch % n == 0)
        base = methods_lr if self.base_lr is None else self.base_lr * batch / REFERENCE_BATCH
        steps = self.steps
        if steps is None and self.epochs is None:
            steps = min(max(-(-PASSES * samples // batch), FEWEST_STEPS), MOST_STEPS)
        own = {**vars(self), "batch_size": batch, "micro_batch_size": micro, "lr": self.lr or base, "steps": steps}
        return SizedOptimizerConf(**own)

    def by_size(self, samples: int) -> str:
        """How batch and steps follow from the number of samples, in one line; empty where the settings say both."""
        sized, parts = self.sized(samples, 1.0), []
        if self.batch_size is None:
            parts.append(
                f"batch {sized.batch_size} (a power of two, at most {LARGEST_BATCH} and n/{BATCHES_AT_LEAST}: "
                "optimizer.batch_size)"
            )
        if self.steps is None and self.epochs is None:
            parts.append(
                f"{sized.steps:,} steps ({PASSES} n / batch, at least {FEWEST_STEPS}, at most {MOST_STEPS:,}: "
                "optimizer.steps or optimizer.epochs)"
            )
        if self.warmup_steps is None and self.warmup_epochs is None:
            parts.append(f"warm-up {WARMUP_SHARE:.0%} of the steps (optimizer.warmup_steps)")
        return f"by the data's size, n = {samples:,} samples: {', '.join(parts)}" if parts else ""

    def contradictions(self, key: str) -> Iterator[str]:
        """Betas, the end of the schedule."""
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"{key}.betas={self.betas}: two numbers from 0 up to (not including) 1; the paper: [0.9,0.95]"
        lr, how = self.lr, ""
        if lr is None and self.base_lr is not None and self.batch_size is not None:
            lr, how = self.base_lr * self.batch_size / REFERENCE_BATCH, "base_lr x batch_size/256 = "
        if lr is not None and self.min_lr > lr:
            yield f"{key}.min_lr={self.min_lr:g} is above the actual rate, {how}{lr:g}."


@dataclass
class SizedOptimizerConf(OptimizerConf):
    """The optimizer's settings once the number of samples is known: nothing is left to the data's size."""

    lr: float = 0.0
    batch_size: int = 1
    micro_batch_size: int = 1

    def most_samples(self, longest: int) -> int:
        """How many samples a micro-batch has at most where all are `longest` tokens long."""
        if self.micro_batch_tokens is None:
            return self.micro_batch_size
        return min(self.micro_batch_size, max(self.micro_batch_tokens // longest, 1))


def power_of_two(most: int) -> int:
    """The largest power of two up to `most`; 1 where that is less."""
    return 1 << max(most, 1).bit_length() - 1


@dataclass
class TrainingConf:
    """How often a run validates, saves and writes."""

    validate_every_steps: int | None = number(None, at_least=1)  # steps between validations; null = after each epoch
    # steps between checkpoints; null = after each epoch
    save_every_steps: int | None = number(None, at_least=1, influence=False)
    # how samples make a batch. padded = a row each, filled up to the longest; forest = one row without padding, where
    # what samples begin with alike (template, question about one picture) is computed once, the same result up to
    # rounding; auto = forest where it is exact, but padded on a GPU (not yet measured there); under auto a run goes on
    # in the layout that it began with
    layout: str = choice("auto", "padded", "forest", influence=False)
    keep_checkpoints: int = number(2, at_least=1, influence=False)  # the newest so many stay, and the best
    log_every_steps: int = number(10, at_least=1, influence=False)  # steps between lines of metrics.jsonl
    # questions of the tasks asked before the first step and at each validation, at most 48 tokens an answer; 0 = none
    watch_samples: int = number(4, at_least=0, influence=False)
    tensorboard: bool = plain(True, influence=False)  # write RUN/tensorboard
    wandb: bool = plain(False, influence=False)  # send numbers and samples to Weights & Biases; needs pip install wandb
    # numbers and samples to RUN/mlflow.db, or where MLFLOW_TRACKING_URI says; needs pip install mlflow
    mlflow: bool = plain(False, influence=False)

    @property
    def boards(self) -> list[str]:
        """Where numbers and samples are shown besides the run's own files."""
        return [name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name)]

    def contradictions(self, key: str) -> Iterator[str]:
        """A board whose package is missing."""
        for name in ("wandb", "mlflow"):
            if getattr(self, name) and find_spec(name) is None:
                yield f"{key}.{name}=true, but {name} is not installed: pip install {name}, or {key}.{name}=false"


@dataclass
class EngineConf:
    """What carries out the steps, on one process or several."""

    name: str = plain("single", influence=False)  # single = one process, plain PyTorch; zeroN = DeepSpeed, stage N
    device: str = choice("auto", "cpu", "cuda", influence=False)  # auto = the GPU where there is one
    # of the frozen ones zero3 holds so many whole at a time
    gathered_parameters: int = number(10**9, at_least=0, influence=False)
    deterministic: bool = plain(False, influence=False)  # the same bits each time on a GPU, too; slower there

    @property
    def stage(self) -> int:
        """The ZeRO stage: 1 shards Adam's moments, 2 gradients too, 3 the frozen base too; 0 and `single` nothing."""
        return int(self.name.removeprefix("zero")[0]) if self.name.startswith("zero") else 0

    @property
    def offload(self) -> bool:
        """Whether Adam's moments, and at stage 3 the frozen base, wait in the machine's memory."""
        return self.name.endswith("_offload")


ENGINES = Register("engine")
ENGINES.add("single", EngineConf, "mmadapter.training.engine:SingleDeviceEngine")
for _zero in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"):
    ENGINES.add(_zero, EngineConf, "mmadapter.training.zero:ZeroEngine")
