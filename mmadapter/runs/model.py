"""The model of a run folder or an adapter folder, built again for evaluation and use."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from mmadapter.config import EvalConf, RunConf, load_run_config
from mmadapter.errors import InputError
from mmadapter.hosts.families import family_of
from mmadapter.hosts.settings import HostConf
from mmadapter.methods.folder import CARD, Card, read_card, settings_of_card
from mmadapter.model import AdaptedModel
from mmadapter.settings import problems_of, typed
from mmadapter.vision import ENCODERS
from mmadapter.vision.settings import OpenClipSettings, VisionSettings, open_clip_folder

PLAIN_MAX_TOKENS = 512  # where a card does not say how many tokens of context its adapter was made for


def open_folder(
    folder: Path, host: str | None, vision: str | None, device: str | None, dtype: str | None
) -> AdaptedModel:
    """The model of a run folder or an adapter folder, in evaluation mode; see `mmadapter.load` for what is given.

    Raises InputError for a folder that is neither, and for whatever does not fit it. Global random states stay as they
    were.
    """
    is_run, is_adapter = (folder / "config.yaml").is_file(), (folder / CARD).is_file()
    if not is_run and not is_adapter:
        raise InputError(
            f"{folder}: neither a run folder (with config.yaml) nor an adapter folder (with adapter.json). "
            "Name one of them, e.g. runs/NAME or runs/NAME/adapter."
        )
    conf = _settings_of_moved_run(folder, host, vision) if is_run else settings_of_adapter(folder, host, vision)
    conf.host.dtype = dtype or conf.host.dtype
    if wrong := [problem for problem in problems_of(conf.host, "host") if "dtype" in problem]:
        raise InputError(wrong[0].removeprefix("host."))
    with torch.random.fork_rng(devices=[]):  # frozen modules are drawn before their weights are read
        if is_run:
            return model_of_run(folder, conf, device)
        model = AdaptedModel.build(conf.host, conf.vision, conf.adapter, conf.seed, device)
        model.load_adapter(folder)
        return model


def settings_of_run(folder: Path, overrides: EvalConf) -> RunConf:
    """The run's settings with what eval.py overrides (where the host and CLIP lie now, dtype, ...)."""
    conf = load_run_config(folder)
    for part in ("host", "vision"):
        for key, value in vars(getattr(overrides, part)).items():
            if value is not None:
                setattr(getattr(conf, part), key, value)
    return conf


def model_of_run(folder: Path, conf: RunConf, device: str | None = None) -> AdaptedModel:
    """Builds the run's model and puts its adapter in: the finished one, else that of the newest checkpoint."""
    model = AdaptedModel.build(conf.host, conf.vision, conf.adapter, conf.seed, None if device == "auto" else device)
    if (folder / "adapter" / CARD).is_file():
        model.load_adapter(folder / "adapter")
    elif not (folder / "finished.json").is_file():  # finished without an adapter: the host alone, with closed gates
        load_checkpoint(model, folder)
    return model


def load_checkpoint(model: AdaptedModel, folder: Path) -> None:
    """Puts the tensors of a run's newest checkpoint into the model; frozen roles are as the run started."""
    pointer = folder / "checkpoints" / "last.json"
    if not pointer.is_file():
        raise InputError(
            f"{folder}: there is neither an adapter/ nor a checkpoint yet (training.save_every_steps says when one is "
            "saved). Let the run go on, then evaluate it."
        )
    file = pointer.parent / json.loads(pointer.read_text())["folder"] / "trainable.safetensors"
    if not file.is_file():
        raise InputError(f"{pointer} names {file}, which is not there. Run train.py again: it repairs its checkpoints.")
    start = pointer.with_name("start.safetensors")
    tensors = (load_file(start) if start.is_file() else {}) | load_file(file)
    parameters = {item.name: item.parameter for item in model.trainable_parameters()}
    if tensors.keys() != parameters.keys():
        differing = ", ".join(sorted(tensors.keys() ^ parameters.keys())[:5])
        raise InputError(f"{file} does not fit the run's settings; only one of the two has: {differing}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                stored, wanted = tuple(tensors[name].shape), tuple(parameter.shape)
                raise InputError(f"{file}, {name}: its shape is {stored}, the run's settings give {wanted}.")
            parameter.copy_(tensors[name])


def settings_of_adapter(folder: Path, host: str | None, vision: str | None) -> RunConf:
    """The settings that build the adapter of `folder` on `host`, with the CLIP weights at `vision`.

    A card says what its host and encoder are, not where they lie. Raises InputError that names what is not given.
    """
    card = read_card(folder)
    _refuse_missing_places(folder, card, host, vision)
    kernels = family_of(card["host"]["model_type"]).kernels
    conf = RunConf(adapter=settings_of_card(folder, card))
    conf.host = HostConf(
        path=host,
        attention="sdpa" if "sdpa" in kernels else kernels[0],
        max_tokens=card.get("max_tokens", PLAIN_MAX_TOKENS),
    )
    encoder = card.get("encoder")
    if encoder is None:
        conf.vision = VisionSettings(enabled=False)
        return conf
    conf.vision = typed(ENCODERS.settings(encoder["encoder"]), encoder, "vision")
    if vision is not None:
        put_vision(folder, conf.vision, vision)
    return conf


def put_vision(folder: Path, conf: VisionSettings, place: str) -> None:
    """Let the encoder come from `place`: a folder in open_clip's layout or "tiny", which say what they are; else
    weights (a file, a `transformers` folder, an open_clip tag) for the model that is named already.

    Raises InputError where no model is named, and for an encoder of another kind.
    """
    if not isinstance(conf, OpenClipSettings):
        raise InputError(f"{folder}: vision={place} is given, but its encoder is {conf.encoder}. Leave vision= away.")
    if open_clip_folder(place) is not None:
        conf.model, conf.pretrained = place, None
    elif conf.model is None or open_clip_folder(conf.model) is not None:
        raise InputError(
            f"vision={place}: what the adapter was trained with was a folder in open_clip's layout "
            "(open_clip_config.json beside open_clip_model.safetensors), or its card is of an older version and does "
            "not say open_clip's name for the model. Give such a folder, or load the run folder."
        )
    else:
        conf.pretrained = place


def _settings_of_moved_run(folder: Path, host: str | None, vision: str | None) -> RunConf:
    """The run's settings, with host and CLIP weights where they are now."""
    conf = load_run_config(folder)
    conf.host.path = host or conf.host.path
    if vision is not None and not conf.vision.enabled:
        raise InputError(f"{folder}: vision={vision} is given, but this run is text only. Leave vision= away.")
    if vision is not None:
        put_vision(folder, conf.vision, vision)
    return conf


def _refuse_missing_places(folder: Path, card: Card, host: str | None, vision: str | None) -> None:
    missing, told = [], card["host"]
    if host is None:
        shape = f"{told['layers']} layers, width {told['width']}, {told['vocabulary']} tokens"
        missing.append(f"host= (its card says: {told['model_type']}, {shape})")
    encoder = card.get("encoder") or {}
    if vision is None and encoder.get("encoder") == "open_clip":
        name = encoder.get("model") or "a folder in open_clip's layout"
        missing.append(f"vision= (its card says: {name}, blocks {encoder['layers']})")
    if missing:
        raise InputError(
            f"{folder} is an adapter folder: it says what its host is, not where it lies. Give "
            f"{' and '.join(missing)}; or give the run folder that it came from, which knows."
        )
    if vision is not None and card.get("vision") is None:
        raise InputError(f"{folder}: vision={vision} is given, but this adapter is text only. Leave vision= away.")
