"""mmadapter itself: the functions that `mmadapter train`, `generate` and a run's picture store call."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.case import BETAS, LR, WEIGHT_DECAY, Case, composed
from mmadapter.config import RunConf
from mmadapter.data.mixture import StepShape, micro_batches
from mmadapter.distributed.ranks import Ranks
from mmadapter.hosts.settings import GenerationConf
from mmadapter.model import AdaptedModel
from mmadapter.training.run import groups_of, layout_of
from mmadapter.training.settings import ENGINES
from mmadapter.vision import ENCODERS
from mmadapter.vision.features import FeatureStore
from mmadapter.vision.settings import OpenClipSettings

# V2 without its visual part: what its instructions train.
V2 = [
    *("adapter.bias_scale.bias=[all]", "adapter.bias_scale.scale=[all]", "adapter.norms.which=all"),
    "adapter.groups.adapter.roles=[prompt,gate,norm,bias,scale]",
]


def settings(case: Case) -> RunConf:
    parts = ["vision=tiny", "adapter=v2"] if case.adapter == "v2_captions" else ["vision=none", "adapter=v1"]
    return composed(
        [
            *(f"host.path={case.host}", f"host.max_tokens={case.longest}", f"host.dtype={case.dtype}"),
            *(*parts, f"adapter.prompts.layers={case.prompt_layers}"),
            *(f"adapter.prompts.length={case.prompt_length}", f"optimizer.betas={list(BETAS)}".replace(" ", "")),
            *(f"optimizer.weight_decay={WEIGHT_DECAY}", f"optimizer.lr={LR}"),
            *(f"optimizer.batch_size={case.batch}", f"optimizer.micro_batch_size={case.batch}"),
            *(*(V2 if case.adapter == "v2" else ()), *case.overrides),
        ]
    )


def opened_model(case: Case, conf: RunConf, kind: type[AdaptedModel] = AdaptedModel) -> AdaptedModel:
    """The model of a run, with the prompts and gates that all contenders have."""
    model = kind.build(conf.host, conf.vision, conf.adapter, conf.seed, case.device)
    items = model.trainable_parameters()
    prompts, gates = ([item.parameter for item in items if item.role == role] for role in ("prompt", "gate"))
    with torch.no_grad():
        for prompt, gate, (values, factor) in zip(prompts, gates, case.opened(), strict=True):
            prompt.copy_(values)
            gate.fill_(math.atanh(factor))
    return model


def training(case: Case, kind: type[AdaptedModel] = AdaptedModel) -> Callable[[int], float]:
    """A step as the training loop does it: its micro-batches made of the samples, and the engine's step."""
    conf = settings(case)
    model = opened_model(case, conf, kind)
    model.train()
    optimizer = conf.optimizer.sized(case.batch, LR)
    engine = ENGINES.load(conf.engine.name)(model, groups_of(conf, model), optimizer, conf.seed, conf.engine, Ranks())
    shape = StepShape(
        optimizer.batch_size, optimizer.micro_batch_size, conf.seed, micro_batch_tokens=optimizer.micro_batch_tokens
    )
    layout, _ = layout_of(conf.training.layout, model, case.device)
    drawn = torch.Generator().manual_seed(2)
    pictures = {item.sample.image for step in case.steps for item in step if item.sample.image is not None}
    features: dict[Path | None, Tensor | None] = {None: None}
    if model.vision is not None:
        features |= {path: torch.randn(model.vision.feature_shape, generator=drawn) for path in sorted(pictures)}

    def step(number: int) -> float:
        batches = micro_batches(case.steps[number], shape, case.pad_id, layout)
        if pictures:
            batches = [replace(one, features=tuple(features[image] for image in one.images)) for one in batches]
        return engine.step(batches, LR).loss

    return step


def generation(case: Case) -> Callable[[int], list[str]]:
    """The answers to all prompts, as one batch."""
    model = opened_model(case, settings(case))
    asked = GenerationConf(max_new_tokens=case.new_tokens)
    return lambda number: model.answer(case.prompts, asked)


def loading(case: Case) -> Callable[[int], None]:
    """From a folder to a model that can train."""
    conf = settings(case)
    kept: list[AdaptedModel] = []

    def load(number: int) -> None:
        kept.append(AdaptedModel.build(conf.host, conf.vision, conf.adapter, conf.seed, case.device))

    return load


def encoding(case: Case) -> Callable[[int], list[list[float]]]:
    """All pictures into a fresh store, as a run without a cache of features has it."""
    layers = json.loads((case.host / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]["layers"]
    vision = OpenClipSettings(model=str(case.host), layers=[layers - 1])
    encoder = ENCODERS.load(vision.encoder)(vision).to(case.device)

    def encode(number: int) -> list[list[float]]:
        store = FeatureStore(encoder)
        store.add(case.pictures)
        return [feature.tolist() for feature in store.of(case.pictures) if feature is not None]

    return encode
