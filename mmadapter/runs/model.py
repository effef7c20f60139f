"""The model of a run folder or an adapter folder, built again for evaluation and use."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmadapter.config import CONFIG_FILE, EvalConf, RunConf, load_run_config
from mmadapter.data.settings import trained_system, trained_template
from mmadapter.errors import InputError
from mmadapter.hosts.families import family_of
from mmadapter.hosts.load import host_shape, without_library_bars
from mmadapter.hosts.settings import HostConf
from mmadapter.methods.folder import CARD, read_card, refuse_other_shapes, settings_of_card
from mmadapter.model import AdaptedModel
from mmadapter.runs.checkpoint_files import START_FILE, digest_of, newest_tensors
from mmadapter.settings import problems_of, typed
from mmadapter.vision import ENCODERS
from mmadapter.vision.settings import OF_ONE_MACHINE, VisionSettings

PLAIN_MAX_TOKENS = 512  # where a card does not say how many tokens of context its adapter was made for


def open_folder(
    folder: Path, host: str | None, vision: str | None, device: str | None, dtype: str | None
) -> AdaptedModel:
    """The model of a run folder or an adapter folder, in evaluation mode; see `mmadapter.load` for what is given.

    Raises InputError for a folder that is neither, and for whatever does not fit it. Global random states stay as they
    were.
    """
    try:
        is_run, is_adapter = (folder / "config.yaml").is_file(), (folder / CARD).is_file()
    except OSError as error:
        raise InputError(f"{str(folder)[:200]}: this folder cannot be looked into ({error.strerror}).") from error
    if not is_run and not is_adapter:
        raise InputError(
            f"{folder}: neither a run folder (with config.yaml) nor an adapter folder (with adapter.json). "
            "Name one of them, e.g. runs/NAME or runs/NAME/adapter."
        )
    if is_run:
        conf = load_run_config(folder)
        conf.host.path = host or conf.host.path
        if vision is not None and not conf.vision.enabled:
            raise InputError(f"{folder}: vision={vision} is given, but this run is text only. Leave vision= away.")
        if vision is not None:
            conf.vision.take_weights(vision)
    else:
        conf = settings_of_adapter(folder, host, vision)
    conf.host.dtype = dtype or conf.host.dtype
    if wrong := [problem for problem in problems_of(conf.host, "host") if "dtype" in problem]:
        raise InputError(wrong[0].removeprefix("host."))
    # Frozen modules are drawn before their weights are read.
    with without_library_bars(), torch.random.fork_rng(devices=[]):
        if is_run:
            return model_of_run(folder, conf, device)
        parts = conf.host, conf.vision, conf.adapter, conf.seed
        try:  # before weights are read, and before the settings' sizes take memory
            shape = AdaptedModel.build(*parts, "meta")
            refuse_other_shapes(folder, shape.adapter, host_shape(shape.host))
        except (RuntimeError, OverflowError, MemoryError) as error:
            raise InputError(f"{folder / CARD}: the adapter's sizes cannot be ({error}). Copy it again.") from error
        model = AdaptedModel.build(*parts, device)
        model.load_adapter(folder)
        return model


def settings_of_run(folder: Path, overrides: EvalConf) -> RunConf:
    """The run's settings with what eval.py overrides (where the host and CLIP lie now, dtype, ...)."""
    conf = load_run_config(folder)
    for part in ("host", "vision"):
        own = getattr(conf, part)
        for key, value in vars(getattr(overrides, part)).items():
            if value is not None:
                if not hasattr(own, key):  # the key of another image encoder
                    raise InputError(
                        f"{part}.{key}={value}: the {part} settings of {folder} have no {key}. Leave it away."
                    )
                setattr(own, key, value)
    return conf


def model_of_run(folder: Path, conf: RunConf, device: str | None = None) -> AdaptedModel:
    """Builds the run's model and puts its adapter in: the finished one, else that of the newest checkpoint."""
    # Groups and what is frozen are of the training alone.
    wrong = [*problems_of(conf.host, "host"), *problems_of(conf.vision, "vision"), *conf.adapter.method_problems()]
    if wrong:
        raise InputError(f"{folder / CONFIG_FILE}: {' '.join(wrong)}")
    where = None if device == "auto" else device
    model = AdaptedModel.build(conf.host, conf.vision, conf.adapter, conf.seed, where)
    if (folder / "adapter" / CARD).is_file():
        model.load_adapter(folder / "adapter")
    elif not (folder / "finished.json").is_file():  # finished without an adapter: the host alone, with closed gates
        load_checkpoint(model, folder)
        model.template = trained_template(conf.data.sources, model.tokenizer)
        model.system = trained_system(conf.data.sources)
    return model


def load_checkpoint(model: AdaptedModel, folder: Path) -> None:
    """Puts the tensors of a run's newest whole checkpoint into the model; frozen roles are as the run started.

    Raises InputError where there is none, and for one of other settings or of another host.
    """
    file, position, trained = newest_tensors(folder / "checkpoints")
    weights = getattr(model.host, "weights_digest", None)
    if weights is not None and position.get("host_weights", "") not in (weights, ""):
        raise InputError(
            f"{file} was made on a host with other weights (weights_digest {position['host_weights']}, here "
            f"{weights}). Name the host of this run: host=FOLDER in mmadapter.load, host.path=FOLDER in mmadapter eval."
        )
    start = file.with_name(START_FILE)
    try:
        beginning = load_file(start) if start.is_file() else {}
        if position["start"] != digest_of(beginning) and beginning.keys() - trained.keys():
            raise ValueError("it is not what it was")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{start}, what the run started from, is damaged ({error}). Run the same training again: it writes it anew."
        ) from error
    tensors = beginning | trained
    parameters = {item.name: item.parameter for item in model.trainable_parameters()}
    stored, wanted = ({name: tuple(one.shape) for name, one in of.items()} for of in (tensors, parameters))
    if differing := [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]:
        each = (f"{name} {stored.get(name, 'absent')} -> {wanted.get(name, 'absent')}" for name in differing[:5])
        raise InputError(f"{file} does not fit the run's settings. Shapes there -> by the settings: {', '.join(each)}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def settings_of_adapter(folder: Path, host: str | None, vision: str | None) -> RunConf:
    """The settings that build the adapter of `folder` on `host`, with the CLIP weights at `vision`.

    A card says what its host and encoder are, not where they lie. Raises InputError that names what is not given.
    """
    card = read_card(folder)
    conf, encoder, told = RunConf(adapter=settings_of_card(folder, card)), card.get("encoder"), card["host"]
    conf.vision = VisionSettings(enabled=False)
    if encoder is not None:
        if here := [name for name in OF_ONE_MACHINE if name in encoder]:
            raise InputError(
                f"{folder / CARD}: encoder.{here[0]} holds on one machine only, so no card has it. Take it out; where "
                "the weights lie is said by vision=."
            )
        try:
            conf.vision = typed(ENCODERS.settings(encoder["encoder"]), encoder, "vision")
        except InputError as error:
            raise InputError(f"{folder / CARD}: {error}") from error

    missing = []
    if host is None:
        shape = f"{told['layers']} layers, width {told['width']}, {told['vocabulary']} tokens"
        missing.append(f"host= (its card says: {told['model_type']}, {shape})")
    if vision is None and conf.vision.enabled and (weights := conf.vision.weights_to_name()) is not None:
        missing.append(f"vision= (its card says: {weights})")
    if missing:
        raise InputError(
            f"{folder} is an adapter folder: it says what its host is, not where it lies. Give "
            f"{' and '.join(missing)}; or give the run folder that it came from, which knows."
        )
    if vision is not None and card.get("vision") is None:
        raise InputError(f"{folder}: vision={vision} is given, but this adapter is text only. Leave vision= away.")

    kernels = family_of(told["model_type"]).kernels
    attention = "sdpa" if "sdpa" in kernels else kernels[0]
    conf.host = HostConf(
        path=host,
        attention=attention,
        max_tokens=card.get("max_tokens", PLAIN_MAX_TOKENS),
        quantization=card.get("quantization"),
    )
    if vision is not None:
        conf.vision.take_weights(vision)
    if wrong := list(problems_of(conf.vision, "vision")):
        raise InputError(f"{folder / CARD}: {' '.join(wrong)}")
    return conf
