"""Settings of a training: optimizer, engine, how often it validates, saves and writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from mmadapter.settings import Register, choice, listing, number, plain

REFERENCE_BATCH = 256  # samples a step that base rates are stated for


@dataclass
class OptimizerConf:
    """conf/optimizer: AdamW, learning rate, schedule, batch (V1 paper, section 4.1)."""

    base_lr: float = number(9.0e-3, above=0)  # actual rate = base_lr x batch_size / 256; paper: 9e-3
    min_lr: float = number(0.0, at_least=0)  # actual rate at the end of the half cosine; paper: 0
    epochs: float = number(5.0, above=0)  # passes over the training samples; paper: 5 (Alpaca), 30 (ScienceQA)
    warmup_epochs: float = number(2.0, at_least=0)  # linear, per step; paper: 2
    steps: int | None = number(None, at_least=1)  # optimizer steps of the run, in place of epochs; null = epochs
    warmup_steps: int | None = number(None, at_least=0)  # with steps, in place of warmup_epochs
    batch_size: int = number(64, at_least=1)  # samples a step, over all devices and micro-batches; paper: 64
    # it changes no more than rounding, through the order of sums: a run may continue with another one
    micro_batch_size: int = number(8, at_least=1, influence=False)  # samples in memory; divides a step of one source
    betas: list[float] = listing(0.9, 0.95)  # AdamW; paper: 0.9, 0.95
    weight_decay: float = number(0.02, at_least=0)  # on prompts and gates, not on vectors and biases; paper: 0.02
    clip_norm: float | None = number(None, above=0)  # gradient norm per group; null = none, as in the paper
    max_nonfinite_steps: int = number(10, at_least=0, influence=False)  # skipped for NaN or infinity before a run stops

    @property
    def lr(self) -> float:
        """The learning rate that the base rate means for this batch: base_lr x batch_size / 256."""
        return self.base_lr * self.batch_size / REFERENCE_BATCH

    def contradictions(self, key: str) -> Iterator[str]:
        """Warm-up and length, betas, the end of the schedule."""
        steps, warmup = self.steps, self.warmup_steps
        if (steps is None) != (warmup is None):
            missing, given = ("warmup_steps", "steps") if warmup is None else ("steps", "warmup_steps")
            example = (steps or 0) // 10 if warmup is None else 10 * (warmup or 1)
            yield f"{key}.{given} needs {key}.{missing} beside it, e.g. {key}.{missing}={example}"
        elif steps is not None and warmup is not None and warmup > steps:
            yield (
                f"{key}.warmup_steps={warmup} exceeds {key}.steps={steps}: the full learning rate would never be "
                f"reached. Set {key}.warmup_steps={steps // 10}"
            )
        elif steps is None and self.warmup_epochs > self.epochs:
            yield (
                f"{key}.warmup_epochs={self.warmup_epochs:g} exceeds {key}.epochs={self.epochs:g}: "
                f"the full learning rate would never be reached. Set {key}.warmup_epochs={self.epochs / 10:g}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"{key}.betas={self.betas}: two numbers from 0 up to (not including) 1; the paper: [0.9,0.95]"
        if self.min_lr > self.lr:
            yield f"{key}.min_lr={self.min_lr:g} is above the actual rate, base_lr x batch_size/256 = {self.lr:g}."


@dataclass
class TrainingConf:
    """conf/training: how often a run validates, saves and writes."""

    validate_every_steps: int | None = number(None, at_least=1)  # null = after each epoch
    save_every_steps: int | None = number(None, at_least=1, influence=False)  # null = after each epoch
    keep_checkpoints: int = number(2, at_least=1, influence=False)  # newest ones that stay, besides the best
    log_every_steps: int = number(10, at_least=1, influence=False)  # steps between lines of metrics.jsonl
    tensorboard: bool = plain(True, influence=False)  # RUN/tensorboard
    wandb: bool = plain(False, influence=False)  # pip install wandb; sends numbers to their servers

    def contradictions(self, key: str) -> Iterator[str]:
        """A board whose package is missing."""
        if self.wandb and find_spec("wandb") is None:
            yield f"{key}.wandb=true, but wandb is not installed: pip install wandb, or {key}.wandb=false"


@dataclass
class EngineConf:
    """conf/engine: what carries out the steps."""

    name: str = plain("single", influence=False)  # single = one process, plain PyTorch; zeroN = DeepSpeed, stage N
    device: str = choice("auto", "cpu", "cuda", influence=False)  # auto = the GPU where there is one
    gathered_parameters: int = number(10**9, at_least=0, influence=False)  # zero3: frozen ones whole at a time, at most
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
