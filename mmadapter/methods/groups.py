"""Roles of trainable parameters, the groups in which they train, and the table that is printed before training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmadapter.errors import InputError
from mmadapter.methods.settings import GroupConf


@dataclass(frozen=True)
class TrainableParameter:
    """One trainable tensor: its name in the adapter, what it is, and whether weight decay falls on it."""

    name: str
    parameter: nn.Parameter
    role: str
    decays: bool


@dataclass(frozen=True)
class Group:
    """Parameters that move together."""

    name: str
    roles: tuple[str, ...]
    lr_scale: float
    weight_decay: float | None
    sources: tuple[str, ...] | None
    parameters: list[tuple[str, nn.Parameter]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(parameter.numel() for _, parameter in self.parameters)


def trainable_parameters(module: nn.Module) -> list[TrainableParameter]:
    """Every parameter of `module` with the role that its owner declares.

    A module class declares `ROLES` (own parameter name -> role) or `ROLE` (one role for itself and all below it).
    Weight decay falls on matrices; on vectors (biases, norms) where the class declares `DECAYS = True`.
    Raises TypeError for a parameter that nobody declares: an undeclared parameter would train unseen.
    """
    found: list[TrainableParameter] = []

    def visit(owner: nn.Module, prefix: str, inherited: str | None) -> None:
        role_of_all = getattr(owner, "ROLE", inherited)
        for name, parameter in owner.named_parameters(recurse=False):
            role = getattr(owner, "ROLES", {}).get(name, role_of_all)
            if role is None:
                raise TypeError(f"{type(owner).__name__} declares no role for its parameter {prefix}{name}")
            decays = parameter.ndim > 1 or getattr(owner, "DECAYS", False)
            found.append(TrainableParameter(f"{prefix}{name}", parameter, role, decays))
        for name, child in owner.named_children():
            visit(child, f"{prefix}{name}.", role_of_all)

    visit(module, "", None)
    return found


def parameter_groups(
    trainable: Iterable[TrainableParameter], settings: Mapping[str, GroupConf], frozen: Collection[str] = ()
) -> list[Group]:
    """Groups by configuration; every trainable parameter ends in exactly one, unless its role is in `frozen`.

    Raises InputError where that cannot be: for what parameters are, as `AdapterConf` says it for what methods declare.
    """
    trainable = [item for item in trainable if item.role not in frozen]
    groups = []
    for name, group in settings.items():
        members = [(item.name, item.parameter) for item in trainable if item.role in group.roles]
        sources = None if group.sources is None else tuple(group.sources)
        groups.append(Group(name, tuple(group.roles), group.lr_scale, group.weight_decay, sources, members))
    asked = sorted(role for group in groups for role in group.roles)
    present = sorted({item.role for item in trainable})
    if asked != present or not all(group.roles for group in groups):
        raise InputError(
            f"adapter.groups has the roles {', '.join(asked) or 'of no group'}, this adapter {', '.join(present)}: "
            "each trains in exactly one group, and no group is empty. Name each of the adapter's roles once."
        )
    return groups


def trainable_table(
    groups: Sequence[Group], trainable: Sequence[TrainableParameter], lr: float, weight_decay: float, host_size: int
) -> list[dict[str, Any]]:
    """One row per group and role, for printing, `trainable.json` and the report.

    `lr` is the actual learning rate of the run; `share` is the row's part of the host's `host_size` parameters.
    """
    known = {item.name: item for item in trainable}
    rows = []
    for group in groups:
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        for role in group.roles:
            members = [known[name] for name, _ in group.parameters if known[name].role == role]
            count = sum(item.parameter.numel() for item in members)
            rows.append(
                {
                    "group": group.name,
                    "role": role,
                    "tensors": len(members),
                    "parameters": count,
                    "share": count / host_size,
                    "lr": lr * group.lr_scale,
                    "weight_decay": decay if any(item.decays for item in members) else 0.0,
                    "sources": "all" if group.sources is None else ", ".join(group.sources),
                }
            )
    return rows
