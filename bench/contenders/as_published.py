"""Our model in the layout of the published code: every sample padded to the full length, dense attention, and logits
of every position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from bench.case import Case
from bench.contenders import ours
from mmadapter.data.batches import Batch
from mmadapter.model import AdaptedModel


class AsPublished(AdaptedModel):
    """The adapted model, whose loss is computed over padded rows."""

    def forward(self, batch: Batch) -> Tensor:
        rows, width = batch.input_ids.shape
        more = self.max_tokens - width  # on the left, where our batches are padded
        ids = functional.pad(batch.input_ids, (more, 0), value=0)
        mask = functional.pad(batch.attention_mask, (more, 0), value=0)
        labels = torch.full((rows, width), -100)
        labels.view(-1)[batch.rows.cpu()] = batch.targets.cpu()  # row t predicts token t + 1
        labels = functional.pad(labels, (more, 0), value=-100).to(self.device)
        logits = self.logits(ids, attention_mask=mask)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


def training(case: Case) -> Callable[[int], float]:
    dense = replace(case, overrides=("host.attention=eager", "training.layout=padded", *case.overrides))
    return ours.training(dense, AsPublished)
