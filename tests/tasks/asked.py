"""One evaluation as eval.py and train.py do it, for tests: read, ask, score, write, and show where it is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmadapter.data.tokens import SampleEncoder
from mmadapter.distributed.ranks import Ranks
from mmadapter.hosts.settings import GenerationConf
from mmadapter.tasks import task_of
from mmadapter.tasks.section import Result, show_section
from mmadapter.tasks.settings import TaskSettings
from mmadapter.tasks.task import evaluate
from mmadapter.terminal import Display
from tests.data.tokenizers_at_hand import byte_level

ALONE = Ranks()


class StandIn:
    """What an evaluation asks of a model, but for the answers; it sees no pictures, and its host is on one rank."""

    training, features, in_step, max_tokens = False, None, False, 2000

    def __init__(self) -> None:
        self.tokenizer = byte_level()

    def encoder(self, max_tokens: int) -> SampleEncoder:
        return SampleEncoder(self.tokenizer, max_tokens)

    def asked_together(self, settings: GenerationConf, batch_size: int) -> int:
        return batch_size

    def without_forest(self, learning: bool) -> str | None:
        return "it has no host"

    def eval(self) -> None:
        self.training = False

    def train(self) -> None:
        self.training = True


def evaluated(
    model: Any, settings: TaskSettings, folder: Path, progress: Any = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """The metrics of a model in one task, as they were written into `folder`."""
    task = task_of(settings)
    return evaluate(model, task, task.read(), folder, ranks, progress).metrics


def show(settings: TaskSettings, folder: Path) -> None:
    """Print what `folder` holds, as eval.py does."""
    metrics = json.loads((folder / "metrics.json").read_text())
    show_section(task_of(settings).section([Result("this run", metrics, rows_of(folder))]), Display())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
