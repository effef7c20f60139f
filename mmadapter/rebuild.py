"""A run folder, or an adapter folder, back into an assistant (design.md, decisions 9 and 10)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError

DTYPES = ("auto", "float32", "bfloat16")
PLAIN_MAX_TOKENS = 512  # where a card does not say how many tokens of context its adapter was made for


def open_folder(folder: Path, host: str | None, vision: str | None, device: str, dtype: str | None) -> Any:
    """The assistant of a run folder or an adapter folder, in evaluation mode; see `mmadapter.load` for what is given.

    Raises InputError for a folder that is neither, and for whatever does not fit it. Global random states stay as they
    were.
    """
    import torch

    is_run, is_adapter = (folder / "config.yaml").is_file(), (folder / "adapter.json").is_file()
    if not is_run and not is_adapter:
        raise InputError(
            f"{folder}: neither a run folder (with config.yaml) nor an adapter folder (with adapter.json). "
            "Name one of them, e.g. runs/NAME or runs/NAME/adapter."
        )
    conf = _conf_of_moved_run(folder, host, vision) if is_run else conf_of_adapter(folder, host, vision)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype is {dtype}; allowed: {', '.join(DTYPES)}.")
    conf.host.dtype = dtype or conf.host.dtype
    with torch.random.fork_rng(devices=[]):  # frozen modules are drawn before their weights are read
        return (assistant_of_run if is_run else assistant_of_adapter)(folder, conf, device)


def conf_of_run(folder: Path, eval_conf: Any) -> Any:
    """The run's settings with what the EvalConf overrides (where the host and CLIP lie now, dtype, ...)."""
    from mmadapter.config.compose import load_run_config

    conf = load_run_config(folder)
    for part in ("host", "vision"):
        for key, value in vars(getattr(eval_conf, part)).items():
            if value is not None:
                setattr(getattr(conf, part), key, value)
    return conf


def _conf_of_moved_run(folder: Path, host: str | None, vision: str | None) -> Any:
    """The run's settings, with host and CLIP weights where they are now."""
    from mmadapter.config import EvalConf

    moved = EvalConf()
    moved.host.path = host
    conf = conf_of_run(folder, moved)
    if vision is not None and not conf.vision.enabled:
        raise InputError(f"{folder}: vision={vision} is given, but this run is text only. Leave vision= away.")
    if vision is not None:
        put_vision(conf, vision)
    return conf


def assistant_of_run(folder: Path, conf: Any, device: str = "auto") -> Any:
    """Builds the run's assistant and puts its adapter in: the finished one, else that of the newest checkpoint."""
    from mmadapter.assistant import Assistant
    from mmadapter.store import load_adapter

    assistant = Assistant.build(conf, device=None if device == "auto" else device)
    if (folder / "adapter" / "adapter.json").is_file():
        load_adapter(assistant, folder / "adapter")
    elif not (folder / "finished.json").is_file():  # finished without an adapter: the host alone, with closed gates
        load_checkpoint(assistant, folder)
    return assistant.eval()


def load_checkpoint(assistant: Any, folder: Path) -> None:
    """Puts the tensors of a run's newest checkpoint into the assistant; frozen roles are as the run started."""
    import torch
    from safetensors.torch import load_file

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
    parameters = {item.name: item.parameter for item in assistant.trainable()}
    if tensors.keys() != parameters.keys():
        differing = ", ".join(sorted(tensors.keys() ^ parameters.keys())[:5])
        raise InputError(f"{file} does not fit the run's settings; only one of the two has: {differing}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                stored, wanted = tuple(tensors[name].shape), tuple(parameter.shape)
                raise InputError(f"{file}, {name}: its shape is {stored}, the run's settings give {wanted}.")
            parameter.copy_(tensors[name])


def assistant_of_adapter(folder: Path, conf: Any, device: str = "auto") -> Any:
    """Builds the assistant of an adapter folder from what `conf_of_adapter` gave, and puts the adapter in.

    Raises InputError where host or encoder are not the adapter's own, with the differing fields.
    """
    from mmadapter.assistant import Assistant
    from mmadapter.store import load_adapter

    assistant = Assistant.build(conf, device=None if device == "auto" else device)
    load_adapter(assistant, folder)
    return assistant.eval()


def conf_of_adapter(folder: Path, host: str | None, vision: str | None) -> Any:
    """The settings that build the adapter of `folder` on `host`, with the CLIP weights at `vision`.

    A card says what its host and encoder are, not where they lie. Raises InputError that names what is not given.
    """
    from mmadapter.card_settings import adapter_conf
    from mmadapter.config import RunConf
    from mmadapter.hosts.recipes import recipe_for
    from mmadapter.store import read_card

    card = read_card(folder)
    _refuse_missing_places(folder, card, host, vision)
    conf = RunConf()
    conf.adapter = adapter_conf(card)
    conf.host.path, conf.host.max_tokens = host, card.get("max_tokens", PLAIN_MAX_TOKENS)
    attentions = recipe_for(card["host"]["model_type"]).attentions
    conf.host.attention = "sdpa" if "sdpa" in attentions else attentions[0]
    conf.vision.enabled = card.get("vision") is not None
    if conf.vision.enabled:
        encoder = {"model": None, "quick_gelu": None, "tokens": "class"} | (card.get("encoder") or {})
        for key, value in encoder.items():
            setattr(conf.vision, key, value)
        for key in ("layers", "project_scales", "channel_order"):
            setattr(conf.vision, key, card["vision"][key])
        assert vision is not None
        put_vision(conf, vision)
    return conf


def put_vision(conf: Any, place: str) -> None:
    """Let `conf.vision` take its tower from `place`: a folder in open_clip's layout or "tiny", which say what they are;
    else weights (a file, a `transformers` folder, an open_clip tag) for the model that is named already.

    Raises InputError where no model is named.
    """
    from mmadapter.vision.settings import open_clip_folder

    if open_clip_folder(place) is not None:
        conf.vision.model, conf.vision.pretrained = place, None
    elif conf.vision.model is None or open_clip_folder(conf.vision.model) is not None:
        raise InputError(
            f"vision={place}: what the adapter was trained with was a folder in open_clip's layout "
            "(open_clip_config.json beside open_clip_model.safetensors), or its card is of an older version and does "
            "not say open_clip's name for the model. Give such a folder, or load the run folder."
        )
    else:
        conf.vision.pretrained = place


def _refuse_missing_places(folder: Path, card: dict[str, Any], host: str | None, vision: str | None) -> None:
    missing, told = [], card["host"]
    if host is None:
        shape = f"{told['layers']} layers, width {told['width']}, {told['vocabulary']} tokens"
        missing.append(f"host= (its card says: {told['model_type']}, {shape})")
    if vision is None and card.get("vision") is not None:
        name = (card.get("encoder") or {}).get("model") or "a folder in open_clip's layout"
        missing.append(f"vision= (its card says: {name}, blocks {card['vision']['layers']})")
    if missing:
        raise InputError(
            f"{folder} is an adapter folder: it says what its host is, not where it lies. Give "
            f"{' and '.join(missing)}; or give the run folder that it came from, which knows."
        )
    if vision is not None and card.get("vision") is None:
        raise InputError(f"{folder}: vision={vision} is given, but this adapter is text only. Leave vision= away.")
