"""Contradictions in the settings of the image encoder, and between it and the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from mmadapter.config.models import open_clip_files, tower_blocks
from mmadapter.config.run import RunConf
from mmadapter.hosts.settings import TINY
from mmadapter.methods.settings import ProjectionConf


def vision_problems(conf: RunConf) -> Iterator[str]:
    """The encoder has the layers that are asked for, and what it gives is read by the adapter."""
    projection, visual = conf.adapter.methods.get("projection"), conf.adapter.visual
    if conf.vision.enabled:
        yield from _tower_problems(conf)
        if not visual:
            yield (
                "vision.enabled is true, but no method of the adapter reads pictures. Set vision=none for text only, "
                "or add a projection: adapter=v1_visual"
            )
        elif projection is not None:
            yield from _reading_problems(projection, conf.vision.tokens)
    elif visual:
        yield (
            f"adapter.{visual[0]} is for pictures, but vision.enabled is false. Use adapter=v1 for text only (or "
            f"{' '.join(f'adapter.{name}=null' for name in visual)}), or vision=clip_vit_l14 for pictures"
        )


def _reading_problems(projection: ProjectionConf, tokens: str) -> Iterator[str]:
    reads = {"mlp": "class", "query_transformer": "all"}[projection.kind]
    if tokens != reads:
        choice = "clip_vit_l14_tokens" if reads == "all" else "clip_vit_l14"
        yield (
            f"adapter.projection.kind={projection.kind} reads vision.tokens={reads}, but vision.tokens is "
            f"{tokens}. Set vision.tokens={reads} (vision={choice}), or the other kind."
        )


def _tower_problems(conf: RunConf) -> Iterator[str]:
    vision = conf.vision
    if vision.model is None:
        yield "vision.model is not set. Give open_clip's name, e.g. vision.model=ViT-L-14-quickgelu, or set vision=none"
        return
    is_folder = (Path(vision.model) / "open_clip_config.json").is_file()
    listed = open_clip_files()
    if vision.model != TINY and not is_folder and listed and vision.model not in listed:
        near = get_close_matches(vision.model, listed, n=3, cutoff=0.5)
        yield f"vision.model={vision.model}: open_clip has no such model. Near: {', '.join(near) or 'none'}."
        return
    yield from _layer_problems(vision.layers, tower_blocks(vision.model), vision.model)
    if vision.model != TINY and not is_folder and not conf.dry_run:
        yield from _weight_problems(vision.pretrained)


def _layer_problems(layers: list[int], blocks: int | None, model: str) -> Iterator[str]:
    if not layers:
        yield "vision.layers is empty: name the blocks whose features are used, e.g. vision.layers=[3,7,11,15,19,23]"
    if len(set(layers)) != len(layers):
        yield f"vision.layers={layers} names a block twice."
    beyond = [layer for layer in layers if layer < 0 or (blocks is not None and layer >= blocks)]
    if beyond:
        numbered = f"0 to {blocks - 1}" if blocks is not None else "from 0"
        yield f"vision.layers={layers}: {model} has no block {', '.join(map(str, beyond))}; they count {numbered}."


def _weight_problems(pretrained: str | None) -> Iterator[str]:
    if pretrained is None:
        yield (
            "vision.pretrained is not set. Give a weights file, a transformers folder, or an open_clip tag, "
            "which downloads: vision.pretrained=openai"
        )
    elif ("/" in pretrained or Path(pretrained).suffix) and not Path(pretrained).expanduser().exists():
        yield f"vision.pretrained={pretrained}: no such file or folder."
