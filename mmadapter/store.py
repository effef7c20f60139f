"""An adapter as a folder: `adapter.safetensors` with nothing but what trained, `adapter.json` that says what it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmadapter.assistant import Assistant
from mmadapter.errors import InputError
from mmadapter.files import make_folder, sync
from mmadapter.identity import adapter_settings, card_of, host_identity, vision_identity

TENSORS, CARD = "adapter.safetensors", "adapter.json"
# Without these the same tensors are another function.
_SAME_AT_START = (
    "gate",
    "gate_per",
    "attention",
    "prompt_projection",
    "scale_on",
    "lora_factor",
    "projection_heads",
)
_ON_EVERY_CARD = ("adapter", "host", "tensors", "sha256")


def save_adapter(assistant: Assistant, folder: Path, training: dict[str, Any] | None = None) -> None:
    """Write the adapter as `folder`, whole or not at all; a previous one stays until the new one is complete.

    `training` is a summary for the card. Raises InputError when the disk is full.
    """
    tensors = {item.name: item.parameter.detach().cpu().contiguous() for item in assistant.trainable()}
    write_adapter(folder, tensors, card_of(assistant, training))


def write_adapter(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `tensors` and a card of `facts` (what an adapter's card says beside its tensors), whole or not at all.

    Raises InputError when the disk is full, AssertionError for a tensor that has no numbers here: a fault of ours, such
    as a parameter whose numbers are shared out over the processes.
    """
    from safetensors.torch import save_file

    if hollow := [name for name, tensor in tensors.items() if not tensor.numel()]:
        raise AssertionError(f"internal error: {len(hollow)} of the adapter's tensors are not whole here: {hollow[:5]}")
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, temporary / TENSORS)
        card = facts | {
            "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "sha256": _file_digest(temporary / TENSORS),
        }
        (temporary / CARD).write_text(json.dumps(card, indent=2) + "\n")
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors' files are the owner's only
            sync(file)
        temporary.chmod(0o755)
        sync(temporary)
        _replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the adapter could not be saved ({error}). Free some space, run again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_adapter(folder: Path) -> None:
    """Takes away what killed saves of `folder` left; the previous adapter gets its name back where none has it."""
    for old in folder.parent.glob(f".{folder.name}-old-*"):
        if not folder.exists():
            old.rename(folder)
    for path in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(path)


def load_adapter(assistant: Assistant, folder: Path) -> dict[str, Any]:
    """Load the tensors of `folder` into `assistant` and return the card.

    Raises InputError when the folder is incomplete or damaged, or belongs to another host, encoder or adapter shape.
    """
    card = read_card(folder)
    check_host(folder, card, assistant)
    _refuse_differences(folder, "vision", card.get("vision"), vision_identity(assistant))
    tensors = read_tensors(folder, card)
    own = {item.name: item.parameter for item in assistant.trainable()}
    shapes = {name: list(parameter.shape) for name, parameter in own.items()}
    _refuse_differences(folder, "tensors", {name: list(t.shape) for name, t in tensors.items()}, shapes)
    settings = adapter_settings(assistant)
    _refuse_differences(folder, "adapter", card["adapter"], settings)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
    return card


def start_from(assistant: Assistant, folder: Path) -> str:
    """Begin a training at the adapter that `folder` (or its `adapter/`, of a run) holds; says what was taken over.

    Tensors that the folder lacks keep their fresh values: a later phase trains parts that an earlier one did not have.
    Raises InputError where the folder has tensors that this adapter lacks or would use differently (another kind of
    gate, ...), or is of another host or encoder.
    """
    folder = folder / "adapter" if (folder / "adapter" / CARD).is_file() else folder
    card = read_card(folder)
    check_host(folder, card, assistant)
    if card.get("vision") is not None:
        _refuse_differences(folder, "vision", card["vision"], vision_identity(assistant))
    own = {item.name: item.parameter for item in assistant.trainable()}
    shapes = {name: list(parameter.shape) for name, parameter in own.items()}
    tensors = read_tensors(folder, card)
    held = {name: list(tensor.shape) for name, tensor in tensors.items()}
    _refuse_differences(folder, "tensors", held, {name: shape for name, shape in shapes.items() if name in held})
    settings, told = adapter_settings(assistant), card["adapter"]
    both = [key for key in _SAME_AT_START if key in told and key in settings]
    _refuse_differences(folder, "adapter", {key: told[key] for key in both}, {key: settings[key] for key in both})
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return f"started from {folder}: {len(tensors)} tensors, {len(own) - len(tensors)} fresh"


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an adapter folder. Raises InputError where there is none, or one that lacks what all cards have."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no adapter: {CARD} cannot be read ({error}).") from error
    if missing := [key for key in _ON_EVERY_CARD if key not in card]:
        raise InputError(f"{folder / CARD} says nothing on {', '.join(missing)}: it is no card of mmadapter's.")
    return card


def check_host(folder: Path, card: dict[str, Any], assistant: Assistant) -> None:
    """Raises InputError with the differing fields where the card's adapter belongs to another host."""
    _refuse_differences(folder, "host", card["host"], host_identity(assistant))


def read_tensors(folder: Path, card: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of an adapter folder with this card. Raises InputError where they are missing or damaged."""
    from safetensors.torch import load_file

    file = folder / TENSORS
    if not file.is_file():
        raise InputError(f"{file} is missing. The adapter folder is incomplete; copy it again.")
    if _file_digest(file) != card["sha256"]:
        raise InputError(f"{file} is damaged: its checksum is not the one in {CARD}. Copy the adapter folder again.")
    return load_file(file)


def _refuse_differences(folder: Path, what: str, saved: Any, here: Any) -> None:
    if saved == here:
        return
    if not (isinstance(saved, dict) and isinstance(here, dict)):
        has = "has" if saved is not None else "has no"
        raise InputError(
            f"{folder}: the adapter {has} {what} part, this assistant is the other way round. "
            f"Build it with the {what} settings of the run that made the adapter."
        )
    keys = [key for key in {**saved, **here} if saved.get(key) != here.get(key)]
    listed = "; ".join(f"{key}: adapter {saved.get(key)}, here {here.get(key)}" for key in keys[:6])
    raise InputError(
        f"{folder} does not fit this {what}. Differs: {listed}. Use the {what} of the run that made the adapter."
    )


def _replace(temporary: Path, folder: Path) -> None:
    """Put `temporary` in the place of `folder`, keeping the old one until the new one has its name."""
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
        folder.rename(old)
    temporary.rename(folder)
    sync(folder.parent)
    if old is not None:
        shutil.rmtree(old)


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
