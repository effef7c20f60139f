"""Contradictions between adapter, host and image tower, and in the groups of trainable roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmadapter.config.adapter import ROLES
from mmadapter.config.derived import VARIANT
from mmadapter.config.host import TINY
from mmadapter.config.models import host_facts, host_file, host_folder
from mmadapter.config.run import RunConf
from mmadapter.runs.folder import has_checkpoints, run_folder
from mmadapter.settings import meant


def adapter_problems(conf: RunConf) -> Iterator[str]:
    """The host is there and is deep enough for the adapter; the tower has its layers; the adapter to start from is."""
    yield from _host_problems(conf)
    if not conf.dry_run:
        yield from conf.vision.missing_weights("vision")
    yield from _start_problems(conf)
    facts = host_facts(conf.host.path) if conf.host.path is not None else None
    if facts is None:
        return
    if facts.layers is not None:
        yield from _depth_problems(conf, facts.layers, facts.file)
    if facts.positions is not None and conf.host.max_tokens > facts.positions:
        yield (
            f"host.max_tokens={conf.host.max_tokens}, but the host was built for {facts.positions} tokens "
            f"({facts.file}). Set host.max_tokens={facts.positions} or less."
        )


def _depth_problems(conf: RunConf, layers: int, file: Path) -> Iterator[str]:
    """Visual tokens and prompts are on different layers of the host."""
    early = conf.adapter.early_layers if conf.vision.enabled else 0
    if conf.adapter.layers > layers:
        yield (
            f"adapter.layers={conf.adapter.layers}, but the host has {layers} layers ({file}). "
            f"Set adapter.layers to {layers - early} or less, e.g. adapter.layers={max(1, layers - 2)}"
        )
    elif early + conf.adapter.layers > layers:
        yield (
            f"adapter.early_layers={early} and adapter.layers={conf.adapter.layers} meet: the host has {layers} layers "
            f"({file}), and visual tokens stay apart from prompts. Set adapter.layers={max(layers - early, 0)} or less."
        )


def _start_problems(conf: RunConf) -> Iterator[str]:
    start = conf.adapter.start
    if start is None or conf.dry_run:
        return
    if start.startswith(VARIANT):
        yield f"adapter.start={start} names a variant, which only another variant can start from. Name a folder."
    elif any((Path(start).expanduser() / part / "adapter.json").is_file() for part in ("", "adapter")):
        return
    elif not has_checkpoints(run_folder(conf)):  # else it goes on from these, and needs that adapter no more
        yield (
            f"adapter.start={start}: there is no adapter.json there, nor in its adapter/. Name an adapter folder or a "
            "run folder that has saved one, e.g. adapter.start=runs/NAME; null starts afresh."
        )


def projection_problems(conf: RunConf) -> Iterator[str]:
    """The projection reads what the image encoder gives, and its visual tokens have somewhere to go."""
    adapter, projection = conf.adapter, conf.adapter.projection
    if not conf.vision.enabled:
        return
    reads = {"mlp": "class", "query_transformer": "all"}[projection.kind]
    if conf.vision.tokens != reads:
        choice = "clip_vit_l14_tokens" if reads == "all" else "clip_vit_l14"
        yield (
            f"adapter.projection.kind={projection.kind} reads vision.tokens={reads}, but vision.tokens is "
            f"{conf.vision.tokens}. Set vision.tokens={reads} (vision={choice}), or the other kind."
        )
    if projection.kind == "query_transformer" and projection.hidden % projection.heads:
        yield (
            f"adapter.projection.heads={projection.heads} does not divide adapter.projection.hidden="
            f"{projection.hidden}. Released: hidden 768 (or 512), heads 16."
        )
    if adapter.early_layers:
        return
    if not adapter.layers:
        yield (
            "adapter.layers=0 and adapter.early_layers=0 leave pictures no way in. Set adapter.early_layers=1 (V2), "
            "adapter.layers=30 (V1), or vision=none"
        )
    elif projection.tokens not in (1, adapter.prompt_length):
        yield (
            f"adapter.projection.tokens={projection.tokens}: without early layers one visual token is added to all "
            f"prompts of a layer, or one to each. Set adapter.projection.tokens=1 or ={adapter.prompt_length}"
        )


def _host_problems(conf: RunConf) -> Iterator[str]:
    path = conf.host.path
    if path is None:
        yield "host.path is not set. Give the folder of your language model: host.path=/models/llama-7b (or host=tiny)"
        return
    if path == TINY:
        return
    folder = host_folder(path)
    if not folder.is_dir():
        yield f"host.path={path}: no such folder. Give a model folder with config.json and safetensors files."
    elif host_file(path) is None:
        yield f"host.path={path}: neither config.json (transformers layout) nor params.json (Meta's layout) is there."
    if conf.host.tokenizer is not None and not Path(conf.host.tokenizer).expanduser().exists():
        yield f"host.tokenizer={conf.host.tokenizer}: no such file or folder."


def present_roles(conf: RunConf) -> list[str]:
    """The roles that the adapter's parameters will have."""
    adapter, pictures = conf.adapter, conf.vision.enabled
    there = {
        "prompt": adapter.layers > 0,
        "gate": adapter.layers > 0 and adapter.attention != "joint",
        "visual_projection": pictures,
        "early_gate": pictures and adapter.early_layers > 0,
        "norm": adapter.norms != "none",
        "bias": bool(adapter.bias),
        "scale": bool(adapter.scale),
        "lora": adapter.lora.rank > 0,
    }
    return [role for role in ROLES if there[role]]


def group_problems(conf: RunConf) -> Iterator[str]:
    """Every role that the adapter has is in exactly one group or frozen; groups have roles and sources that exist."""
    present = present_roles(conf)
    owners: dict[str, str] = {}
    for role in conf.adapter.frozen:
        if role not in present:
            yield _no_such_role(role, "adapter.frozen")
    for name, group in conf.adapter.groups.items():
        key = f"adapter.groups.{name}"
        if not group.roles:
            yield f"{key}.roles is empty: the group would train nothing. Name its roles, or remove it with ~{key}"
        for role in group.roles:
            if role not in present:
                yield _no_such_role(role, f"{key}.roles")
            elif role in conf.adapter.frozen:
                yield f"role {role!r} is in adapter.frozen and in {key}. Remove it from one of them."
            elif role in owners:
                both = f"adapter.groups.{owners[role]} and in {key}"
                yield f"role {role!r} is in {both}; a role trains in one group. Remove it from one of them."
            owners.setdefault(role, name)
        yield from _source_problems(group.sources, key, list(conf.data.sources))
    missing = [role for role in present if role not in owners and role not in conf.adapter.frozen]
    if missing:
        groups = ", ".join(conf.adapter.groups) or "(none is defined)"
        yield (
            f"adapter.groups leaves {', '.join(missing)} without a group; add it to the roles of one of: {groups}; "
            "or to adapter.frozen, where it is not to train."
        )


ABSENT = {
    "prompt": "adapter.layers is 0",
    "gate": "this adapter has no gates (adapter.attention=joint, or adapter.layers=0)",
    "visual_projection": "vision.enabled is false. Use adapter=v1 for text only, or vision=clip_vit_l14 for pictures",
    "early_gate": "adapter.early_layers is 0 or vision.enabled is false",
    "norm": "adapter.norms is none",
    "bias": "adapter.bias is empty",
    "scale": "adapter.scale is empty",
    "lora": "adapter.lora.rank is 0",
}


def _no_such_role(role: str, key: str) -> str:
    if role not in ROLES:
        return f"{key} names {role!r}. {meant(role, ROLES)}Roles are: {', '.join(ROLES)}."
    return f"{key} names {role}, but {ABSENT[role]}. Remove {role} there, or change that."


def _source_problems(sources: list[str] | None, key: str, known: list[str]) -> Iterator[str]:
    if sources is None:
        return
    if not sources:
        yield f"{key}.sources is empty: the group would never learn. Name sources, or set it to null for all."
    unknown = [source for source in sources if source not in known]
    if unknown:
        has = ", ".join(known) or "nothing"
        yield f"{key}.sources names {', '.join(unknown)}, which data.sources does not have. It has: {has}."
