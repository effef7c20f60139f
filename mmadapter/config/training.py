"""conf/training: how often a run validates, saves and writes."""

from dataclasses import dataclass, field

from mmadapter.config.fields import number, without_influence


@dataclass
class TrainingConf:
    validate_every_steps: int | None = number(None, at_least=1)  # null = after each epoch
    save_every_steps: int | None = field(default=None, metadata={"at_least": 1, "without_influence": True})  # null = after each epoch
    keep_checkpoints: int = field(default=2, metadata={"at_least": 1, "without_influence": True})  # newest ones, besides the best
    log_every_steps: int = field(default=10, metadata={"at_least": 1, "without_influence": True})  # lines of metrics.jsonl
    tensorboard: bool = without_influence(True)  # RUN/tensorboard
    wandb: bool = without_influence(False)  # needs the extra: pip install -e .[wandb]; sends numbers to their servers
