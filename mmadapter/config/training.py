"""conf/training: how often a run validates, saves and writes."""

from dataclasses import dataclass

from mmadapter.settings import number, plain


@dataclass
class TrainingConf:
    validate_every_steps: int | None = number(None, at_least=1)  # null = after each epoch
    save_every_steps: int | None = number(None, at_least=1, influence=False)  # null = after each epoch
    keep_checkpoints: int = number(2, at_least=1, influence=False)  # newest ones that stay, besides the best
    log_every_steps: int = number(10, at_least=1, influence=False)  # steps between lines of metrics.jsonl
    tensorboard: bool = plain(True, influence=False)  # RUN/tensorboard
    wandb: bool = plain(False, influence=False)  # pip install -e .[wandb]; sends numbers to their servers
