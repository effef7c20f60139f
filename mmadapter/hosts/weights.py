"""Which weights a host has: a digest by which an adapter knows the host that it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmadapter.distributed.deepspeed import gathered, is_sharded
from mmadapter.errors import InputError
from mmadapter.hosts.families import Host

HEADS = ("lm_head.weight", "embed_out.weight")  # stored or not where they are the embeddings
Matrix = tuple[str, list[int], Callable[[int], Tensor]]  # name, shape, what gives a row


def weights_digest(folder: Path, host: Host) -> str | None:
    """16 hex digits of the weights that `host` was loaded with from `folder`.

    Of every matrix (embeddings, linear layers; the head where it is one of its own) the name from `layers.` on, the
    shape and the values of two rows count, at a quarter and at three quarters, rounded to bfloat16. So the digest does
    not depend on how the weights are spread over files, on `host.dtype`, nor on whether they are stored in float32,
    float16 or bfloat16. Read are the safetensors files, by every rank; without such files it is the weights in memory
    that are asked, of a sharded host by all ranks together. Of LLaMA-7B 450 rows are read, some 4 MB.
    """
    with ExitStack() as opened:
        matrices = list(_stored(folder, opened)) or list(_in_memory(host))
        chosen = [one for one in matrices if not (host.config.tie_word_embeddings and one[0].endswith(HEADS))]
        found = hashlib.sha256()
        for name, shape, row in sorted(chosen, key=lambda one: _short(one[0])):
            found.update(f"{_short(name)} {shape} ".encode())
            for place in (shape[0] // 4, shape[0] * 3 // 4):
                found.update(
                    row(place).detach().cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
                )
    return found.hexdigest()[:16] if chosen else None


def _stored(folder: Path, opened: ExitStack) -> Iterator[Matrix]:
    """The matrices in the safetensors files that `transformers` loads."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    names = [whole.name] if whole.is_file() else []
    if not names and index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        file = opened.enter_context(safe_open(folder / name, framework="pt"))
        for key in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_slice(key)
            if key.endswith(".weight") and len(tensor.get_shape()) == 2:
                yield key, list(tensor.get_shape()), _rows_of(tensor)


def _in_memory(host: Host) -> Iterator[Matrix]:
    tensors = host.named_parameters() if is_sharded(host) else host.state_dict().items()
    for key, tensor in tensors:
        shape = list(getattr(tensor, "ds_shape", tensor.shape))
        if key.endswith(".weight") and len(shape) == 2:
            yield key, shape, _rows_of(tensor)


def _rows_of(matrix: Any) -> Callable[[int], Tensor]:
    """What gives a row of a tensor (a sharded one is gathered), or of safetensors' slice of a file, which reads no more
    than that."""

    def row(place: int) -> Tensor:
        with gathered([matrix]):
            return matrix[place].clone()

    return row


def _short(name: str) -> str:
    """model.layers.0.mlp.up_proj.weight -> layers.0.mlp.up_proj.weight: what stands in front differs among files."""
    if name.endswith(HEADS):  # GPT-NeoX's head has two names, in files and in memory
        return HEADS[0]
    _, inside, rest = name.partition("layers.")
    return inside + rest if inside else ".".join(name.split(".")[-2:])


def refuse_not_finite(folder: Path, host: Host) -> None:
    """Raises InputError where a weight is not a number, or infinite: every answer would be empty or noise.

    A sharded host is not looked through.
    """
    if is_sharded(host):
        return
    for name, tensor in host.named_parameters():
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise InputError(
                f"{folder}: the host's weights hold numbers that are not finite (NaN or infinity), the first in "
                f"{name}. Download the model again."
            )
