"""What every contender of a command is given, and what several of them make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hydra
import torch
from torch import Tensor

from mmadapter.cli import register_schemas, version_base
from mmadapter.config import RunConf, typed
from mmadapter.data.samples import Sample
from mmadapter.data.tokens import Encoded

CONF = Path(__file__).parents[1] / "conf"
LR = 1e-3
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.02  # the paper's


@dataclass(frozen=True)
class Case:
    """The same host, prompts, gates and sequences for all contenders of a run."""

    host: Path
    width: int
    depth: int  # layers of the host
    prompt_layers: int
    prompt_length: int
    batch: int
    longest: int  # tokens of a sample
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    adapter: str = "v1"
    overrides: tuple[str, ...] = ()  # settings of ours, as `mmadapter train` takes them
    steps: list[list[Encoded]] = field(default_factory=list)  # what each training step learns from
    prompts: list[Sample] = field(default_factory=list)  # what is to be answered
    prompt_ids: list[list[int]] = field(default_factory=list)  # the same as tokens
    pad_id: int = 0
    new_tokens: int = 0
    counts_kept: bool = False  # each turn's outcome is (outcome, bytes that it kept for the backward)
    pictures: list[Path] = field(default_factory=list)

    @property
    def is_on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def opened(self) -> list[tuple[Tensor, float]]:
        """Prompt (length, width) and factor on its branch, of each adapted layer, lowest first.

        The factors are open, for at closed gates a wrong adapter computes the same as a right one; and they are one for
        all heads of a layer, which is all that peft has.
        """
        drawn = torch.Generator().manual_seed(1)
        count, size = self.prompt_layers, (self.prompt_length, self.width)
        prompts = [torch.randn(size, generator=drawn) for _ in range(count)]
        factors = (torch.rand(count, generator=drawn) * 0.8 + 0.1).tolist()
        return list(zip(prompts, factors, strict=True))


def composed(overrides: Sequence[str]) -> RunConf:
    """What `mmadapter train OVERRIDES` would run with."""
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), **version_base()):
        return typed(hydra.compose("train", list(overrides)), RunConf)


def right_padded(samples: Sequence[Encoded], pad_id: int, width: int | None = None) -> dict[str, Tensor]:
    """What a data collator makes of samples: ids, mask, and labels with -100 where nothing is learned."""
    width = width or max(len(item.ids) for item in samples)
    ids = torch.full((len(samples), width), pad_id, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, item in enumerate(samples):
        ids[row, : len(item.ids)] = torch.frombuffer(item.ids, dtype=torch.int32)
        mask[row, : len(item.ids)] = 1
        for begin, end in item.spans:
            labels[row, begin:end] = ids[row, begin:end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Prompts of different lengths as one batch."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}
