"""The files of one checkpoint, read with their digests: what training continues from and what an evaluation scores."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from mmadapter.errors import InputError

FORMAT = 1
STATE_FILE = "state.json"
START_FILE = "start.safetensors"  # beside the checkpoints: the parameters as the run started
TRAINABLE = "trainable.safetensors"
STEP_NAME = re.compile(r"step-(\d+)")
# What reading a checkpoint raises that is not whole; another OSError says that the disk does not give it.
DAMAGE = (
    *(FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
    SafetensorError,
)
log = logging.getLogger(__name__)


def steps_in(folder: Path) -> list[Path]:
    """The folders of all checkpoints in RUN/checkpoints, oldest first."""
    found = {int(named[1]): path for path in folder.glob("step-*") if (named := STEP_NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def checked_files(read: Callable[[str], bytes]) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What state.json says, and the tensors of the other files by name; `read(name)` gives a file's content.

    Raises one of `DAMAGE` where a file is not what its digest says.
    """
    outer = json.loads(read(STATE_FILE))
    body = outer["body"]
    if hashlib.sha256(body.encode()).hexdigest() != outer["digest"]:
        raise ValueError(f"{STATE_FILE} does not match its digest")
    content = json.loads(body)
    contents = {}
    for name, digest in content["digests"].items():
        data = read(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{name} does not match its digest")
        contents[name] = tensors_from_bytes(data)
    return content, contents


def _content(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def other_version(folder: Path, format: object, differing: Sequence[str] = ()) -> InputError:
    """What to raise for a checkpoint of another format, or whose position has `differing` fields."""
    return InputError(
        f"{folder} was written by another version of mmadapter: its {STATE_FILE} has format {format} "
        f"(here {FORMAT}){''.join(f', {name}' for name in differing)}. Nothing was changed. Go on with that "
        "version, or train anew in another folder (run=NAME)."
    )


def newest_tensors(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The newest whole checkpoint in RUN/checkpoints: its folder, the position it was saved at, the trained tensors.

    Nothing is changed there, as a run may be at work. Damaged ones are passed over, as training does, and a warning
    names them. Raises InputError where there is none, or all are damaged.
    """
    damaged = {}
    for path in reversed(steps_in(folder)):
        try:
            content, contents = checked_files(partial(_content, path))
            found = path, dict(content["position"]), contents[TRAINABLE]
        except DAMAGE as error:
            if path.exists():  # else the run has removed it by now
                damaged[path] = error
            continue
        if content.get("format") != FORMAT:
            raise other_version(path, content["format"])
        for one, why in damaged.items():
            log.warning("checkpoint %s is damaged (%s); the one before it is used, %s", one, why, path.name)
        return found
    if damaged:
        listed = "".join(f"\n  {path} is damaged ({why})" for path, why in damaged.items())
        raise InputError(f"No checkpoint can be read:{listed}\nDelete {folder} and run the same training again.")
    raise InputError(
        f"{folder.parent}: there is neither an adapter/ nor a checkpoint yet (training.save_every_steps says when one "
        "is saved). Let the run go on, then evaluate it."
    )


def digest_of(values: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(values.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
