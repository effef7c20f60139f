"""An adapter as a folder: `adapter.safetensors` with nothing but what trained, `adapter.json` that says what it is."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmadapter.errors import InputError
from mmadapter.files import make_folder, read_object, replace_folder, sync
from mmadapter.methods import METHODS, AdapterConf, version_0_1
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.card import refuse_wrong_entries, shown
from mmadapter.methods.groups import trainable_parameters
from mmadapter.methods.settings import MethodConf
from mmadapter.settings import to_plain, typed

TENSORS, CARD = "adapter.safetensors", "adapter.json"
FORMAT = 2
_ON_EVERY_CARD = ("adapter", "host", "tensors", "sha256")
WEIGHTS = "weights_digest"  # of the host, on cards since version 0.2
Card = dict[str, Any]
log = logging.getLogger(__name__)


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
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the adapter could not be saved ({error}). Free some space, run again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_card(folder: Path) -> Card:
    """The card of an adapter folder, in today's format. Raises InputError where there is none, or one that lacks what
    all cards have.
    """
    file = folder / CARD
    if not file.is_file():
        raise InputError(f"{folder} holds no adapter: there is no {CARD}. Copy the adapter folder again.")
    card = read_object(file, "It is no card of an adapter. Copy the adapter folder again.")
    if missing := [key for key in _ON_EVERY_CARD if key not in card]:
        raise InputError(f"{file} says nothing on {', '.join(missing)}: it is no card of mmadapter's.")
    if type(found := card.get("format", 1)) is not int or found < 1:
        raise InputError(f"{file}: format is {shown(found)}; this version reads 1 to {FORMAT}. Copy the folder again.")
    if found > FORMAT:
        raise InputError(f"{file} has format {found}, which a newer mmadapter wrote. Update this one.")
    refuse_wrong_entries(file, card)
    if found == 1:
        try:
            card = version_0_1.card(card)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration, ZeroDivisionError) as error:
            raise InputError(
                f"{file} is no card of version 0.1, as its format says ({type(error).__name__}: {error}). "
                "Copy the adapter folder again."
            ) from error
        refuse_wrong_entries(file, card)
    return card


def read_tensors(folder: Path, card: Card) -> dict[str, Tensor]:
    """The tensors of an adapter folder with this card. Raises InputError where they are missing or damaged."""
    from safetensors.torch import load_file

    file = folder / TENSORS
    if not file.is_file():
        raise InputError(f"{file} is missing. The adapter folder is incomplete; copy it again.")
    if _file_digest(file) != card["sha256"]:
        raise InputError(f"{file} is damaged: its checksum is not the one in {CARD}. Copy the adapter folder again.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file} is no safetensors file ({error}). Copy the adapter folder again.") from error
    if set(tensors) != set(card["tensors"]):
        tensors = {version_0_1.tensor_name(name): tensor for name, tensor in tensors.items()}
    held = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if differing := [name for name in {**card["tensors"], **held} if card["tensors"].get(name) != held.get(name)]:
        one = differing[0]
        raise InputError(
            f"{file} is not what {CARD} says: {one} is {held.get(one, 'absent')}, by the card it is "
            f"{card['tensors'].get(one, 'absent')} ({len(differing)} such). Copy the adapter folder again."
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{file}: {name} holds numbers of type {kind}; an adapter's are float32. It is none.")
        if not tensor.isfinite().all():
            raise InputError(
                f"{file}: {name} holds numbers that are not finite (NaN or infinity): the training that made it "
                "diverged, or the file is none of ours. Train again with a lower rate (optimizer.lr)."
            )
    return tensors


def settings_on_card(methods: Mapping[str, MethodConf]) -> Card:
    """What a card says of an adapter's methods: their settings, as `conf/adapter` has them."""
    return {name: to_plain(settings) for name, settings in methods.items()}


def settings_of_card(folder: Path, card: Card) -> AdapterConf:
    """The adapter's settings. Raises InputError for a method or a setting that this version does not know, and for
    values that cannot be.
    """
    try:
        conf = typed(AdapterConf, card["adapter"], "adapter")
        if conf.groups or conf.frozen or conf.start:
            raise InputError("adapter.groups, adapter.frozen and adapter.start are of a training, not of a card.")
        wrong = conf.method_problems() or [
            text for one in conf.chosen.values() for text in one.problems_beside(conf.chosen, "adapter")
        ]
        if wrong:
            raise InputError(" ".join(wrong))
        return conf
    except InputError as error:
        known = ", ".join(METHODS.names())
        raise InputError(f"{folder / CARD}: {error}\nMethods that are registered here: {known}.") from error


def load_into(adapter: Adapter, folder: Path, identity: Mapping[str, Any], partly: bool = False) -> Card:
    """Put the tensors of `folder` into `adapter` and return the card; `identity` is that of host and encoder here.

    With `partly` the adapter may have more than the folder. Raises InputError when the folder is incomplete or damaged,
    or belongs to another host, encoder or adapter.
    """
    card = read_card(folder)
    refuse_other_host(folder, card, identity["host"])
    if not partly or card.get("vision") is not None:
        refuse_differences(folder, "vision", card.get("vision"), identity["vision"])
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


def refuse_other_host(folder: Path, card: Card, here: Mapping[str, Any]) -> None:
    """Raises InputError where the host here is not the one of the card; says so where weights cannot be compared."""
    saved, here = dict(card["host"]), dict(here)
    if WEIGHTS not in saved or WEIGHTS not in here:
        which = f"{folder / CARD} does not say" if WEIGHTS not in saved else "It is not known here"
        log.warning(
            "%s which weights the host had: shape, configuration and tokenizer are compared, but another host of the "
            "same shape is not told apart.",
            which,
        )
        saved.pop(WEIGHTS, None), here.pop(WEIGHTS, None)
    if saved.get(WEIGHTS) != here.get(WEIGHTS) and {**saved, WEIGHTS: None} == {**here, WEIGHTS: None}:
        raise InputError(
            f"{folder} was trained on a host of this shape with other weights (as Llama 2 and its chat version are two "
            f"such hosts): weights_digest: adapter {saved[WEIGHTS]}, here {here[WEIGHTS]}. Use the host of the run "
            "that made the adapter."
        )
    refuse_differences(folder, "host", saved, here)


def refuse_other_shapes(folder: Path, adapter: Adapter, host: Mapping[str, Any]) -> None:
    """Raises InputError where the card is of a host of another shape than `host`, or its settings, which made
    `adapter`, give tensors of other shapes than it lists. No weights are needed.
    """
    told = read_card(folder)["host"]
    refuse_differences(folder, "host", {name: told.get(name) for name in host}, dict(host))
    shapes = {item.name: list(item.parameter.shape) for item in trainable_parameters(adapter)}
    refuse_differences(folder, "tensors", read_card(folder)["tensors"], shapes)


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


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
