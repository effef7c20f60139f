"""An adapter as a folder: `adapter.safetensors` with nothing but what trained, `adapter.json` that says what it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmadapter.errors import InputError
from mmadapter.files import make_folder, sync
from mmadapter.methods import METHODS, AdapterConf, version_0_1
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.groups import trainable_parameters
from mmadapter.methods.settings import MethodConf
from mmadapter.settings import to_plain, typed

TENSORS, CARD = "adapter.safetensors", "adapter.json"
FORMAT = 2
_ON_EVERY_CARD = ("adapter", "host", "tensors", "sha256")
Card = dict[str, Any]


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], facts: Card) -> None:
    """Write `tensors` and a card of `facts` (what a card says beside its tensors) as `folder`, whole or not at all.

    A previous adapter stays until the new one is complete. Raises InputError when the disk is full, AssertionError for
    a tensor that has no numbers here: a fault of ours, such as a parameter that is sharded over the ranks.
    """
    from safetensors.torch import save_file

    if hollow := [name for name, tensor in tensors.items() if not tensor.numel()]:
        raise AssertionError(f"internal error: {len(hollow)} of the adapter's tensors are not whole here: {hollow[:5]}")
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(dict(tensors), temporary / TENSORS)
        card = {
            "format": FORMAT,
            **facts,
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
    """Removes what killed saves of `folder` left; the previous adapter gets its name back where none has it."""
    for old in folder.parent.glob(f".{folder.name}-old-*"):
        if not folder.exists():
            old.rename(folder)
    for path in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(path)


def read_card(folder: Path) -> Card:
    """The card of an adapter folder, in today's format. Raises InputError where there is none, or one that lacks what
    all cards have.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no adapter: {CARD} cannot be read ({error}).") from error
    if missing := [key for key in _ON_EVERY_CARD if key not in card]:
        raise InputError(f"{folder / CARD} says nothing on {', '.join(missing)}: it is no card of mmadapter's.")
    if card.get("format", 1) > FORMAT:
        raise InputError(
            f"{folder / CARD} has format {card['format']}, which a newer mmadapter wrote. Update this one."
        )
    return version_0_1.card(card) if card.get("format", 1) == 1 else card


def read_tensors(folder: Path, card: Card) -> dict[str, Tensor]:
    """The tensors of an adapter folder with this card. Raises InputError where they are missing or damaged."""
    from safetensors.torch import load_file

    file = folder / TENSORS
    if not file.is_file():
        raise InputError(f"{file} is missing. The adapter folder is incomplete; copy it again.")
    if _file_digest(file) != card["sha256"]:
        raise InputError(f"{file} is damaged: its checksum is not the one in {CARD}. Copy the adapter folder again.")
    tensors = load_file(file)
    if set(tensors) == set(card["tensors"]):
        return tensors
    return {version_0_1.tensor_name(name): tensor for name, tensor in tensors.items()}


def settings_on_card(methods: Mapping[str, MethodConf]) -> Card:
    """What a card says of an adapter's methods: their settings, as `conf/adapter` has them."""
    return {name: to_plain(settings) for name, settings in methods.items()}


def settings_of_card(folder: Path, card: Card) -> AdapterConf:
    """The adapter's settings. Raises InputError for a method or a setting that this version does not know."""
    try:
        return typed(AdapterConf, card["adapter"], "adapter")
    except InputError as error:
        known = ", ".join(METHODS.names())
        raise InputError(f"{folder / CARD}: {error}\nMethods that are registered here: {known}.") from error


def load_into(adapter: Adapter, folder: Path, identity: Mapping[str, Any], partly: bool = False) -> Card:
    """Put the tensors of `folder` into `adapter` and return the card; `identity` is that of host and encoder here.

    With `partly` the adapter may have more than the folder. Raises InputError when the folder is incomplete or damaged,
    or belongs to another host, encoder or adapter.
    """
    card = read_card(folder)
    for what in ("host",) if partly and card.get("vision") is None else ("host", "vision"):
        refuse_differences(folder, what, card.get(what), identity[what])
    tensors = read_tensors(folder, card)
    own = {item.name: item.parameter for item in trainable_parameters(adapter)}
    held = {name: list(tensor.shape) for name, tensor in tensors.items()}
    shapes = {name: list(parameter.shape) for name, parameter in own.items() if name in held or not partly}
    refuse_differences(folder, "tensors", held, shapes)
    saved, here = _functions(settings_of_card(folder, card).chosen), _functions(adapter.settings)
    if partly:
        saved, here = ({key: one[key] for key in saved if key in here} for one in (saved, here))
    refuse_differences(folder, "adapter", saved, here)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return card


def refuse_differences(folder: Path, what: str, saved: Any, here: Any) -> None:
    """Raises InputError with the differing fields where an adapter's `what` is not the one of the model here."""
    if saved == here:
        return
    if not (isinstance(saved, dict) and isinstance(here, dict)):
        has = "has" if saved is not None else "has no"
        raise InputError(
            f"{folder}: the adapter {has} {what} part, this model is the other way round. "
            f"Build it with the {what} settings of the run that made the adapter."
        )
    keys = [key for key in {**saved, **here} if saved.get(key) != here.get(key)]
    listed = "; ".join(f"{key}: adapter {saved.get(key)}, here {here.get(key)}" for key in keys[:6])
    raise InputError(
        f"{folder} does not fit this {what}. Differs: {listed}. Use the {what} of the run that made the adapter."
    )


def _functions(methods: Mapping[str, MethodConf]) -> dict[str, Any]:
    """METHOD.KEY -> value of what makes the same tensors another function."""
    return {f"{name}.{key}": value for name, one in methods.items() for key, value in one.function().items()}


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
