"""conf/optimizer: AdamW, learning rate, schedule, batch (V1 paper, section 4.1)."""

from dataclasses import dataclass

from mmadapter.settings import listing, number


@dataclass
class OptimizerConf:
    base_lr: float = number(9.0e-3, above=0)  # actual rate = base_lr x batch_size / 256; paper: 9e-3
    min_lr: float = number(0.0, at_least=0)  # actual rate at the end of the half cosine; paper: 0
    epochs: float = number(5.0, above=0)  # passes over the training samples; paper: 5 (Alpaca), 30 (ScienceQA)
    warmup_epochs: float = number(2.0, at_least=0)  # linear, per step; paper: 2
    steps: int | None = number(None, at_least=1)  # optimizer steps of the run, in place of epochs; null = epochs
    warmup_steps: int | None = number(None, at_least=0)  # with steps, in place of warmup_epochs
    batch_size: int = number(64, at_least=1)  # samples a step, over all devices and micro-batches; paper: 64
    # it changes no more than rounding, by the order in which is summed up: a run may go on with another
    micro_batch_size: int = number(8, at_least=1, influence=False)  # samples in memory; divides a step of one source
    betas: list[float] = listing(0.9, 0.95)  # AdamW; paper: 0.9, 0.95
    weight_decay: float = number(0.02, at_least=0)  # on prompts and gates, not on vectors and biases; paper: 0.02
    clip_norm: float | None = number(None, above=0)  # gradient norm per group; null = none, as in the paper
    max_nonfinite_steps: int = number(10, at_least=0, influence=False)  # skipped for NaN or infinity before a run stops
