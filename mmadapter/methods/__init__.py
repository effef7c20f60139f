"""The register of methods, and the settings of an adapter: which methods it has, and in which groups they train.

A method is one file here, one settings class in settings.py and one line below. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmadapter.methods.settings import (
    BiasScaleConf,
    EarlyFusionConf,
    GroupConf,
    LoraConf,
    MethodConf,
    NormsConf,
    ProjectionConf,
    PromptsConf,
)
from mmadapter.settings import Register, entries, joined, listing, meant, named, plain, problems_of

# In the order in which methods are built, so that the same seed draws the same numbers, and in which their parts stand
# around a module of the host, innermost first.
METHODS = Register("method")
METHODS.add("projection", ProjectionConf, "mmadapter.methods.projection:build")
METHODS.add("prompts", PromptsConf, "mmadapter.methods.zero_init:build_prompts")
METHODS.add("early_fusion", EarlyFusionConf, "mmadapter.methods.zero_init:build_early_fusion")
METHODS.add("lora", LoraConf, "mmadapter.methods.lora:build")
METHODS.add("bias_scale", BiasScaleConf, "mmadapter.methods.bias_scale:build")
METHODS.add("norms", NormsConf, "mmadapter.methods.norms:build")


@dataclass
class AdapterConf:
    """The methods by name (null leaves one out), and how they train."""

    methods: dict[str, Any] = entries(METHODS, beside=True)  # adapter.NAME={...}; null = without it
    frozen: list[str] = listing()  # roles that do not train in this run (of an earlier phase or a later one)
    start: str | None = plain(None)  # adapter or run folder whose tensors the training starts from; null = fresh
    groups: dict[str, GroupConf] = named()  # name -> roles that train together
    # true = each source moves its own groups (groups.NAME.sources); false = every source moves all groups
    apart: bool = True

    def __post_init__(self) -> None:
        if not self.apart:
            for group in self.groups.values():
                group.sources = None

    @property
    def lr(self) -> float:
        """The actual rate for small batches: the smallest of the methods' own."""
        return min((settings.SMALL_BATCH_LR for settings in self.chosen.values()), default=MethodConf.SMALL_BATCH_LR)

    @property
    def chosen(self) -> dict[str, MethodConf]:
        """The methods by name, in the order of the register."""
        return {name: self.methods[name] for name in METHODS.names() if name in self.methods}

    def roles(self) -> list[str]:
        """The roles that the adapter's parameters have."""
        return [role for settings in self.chosen.values() for role in settings.roles()]

    @property
    def visual(self) -> list[str]:
        """The names of its methods that are nothing without pictures."""
        return [name for name, settings in self.chosen.items() if settings.VISUAL]

    @property
    def readers_of_features(self) -> list[str]:
        """The names of its methods that make visual tokens of what the image encoder gives."""
        return [name for name, settings in self.chosen.items() if settings.READS_FEATURES]

    def without_pictures(self) -> None:
        """Take the visual methods away, with their roles."""
        for name in self.visual:
            gone = self.methods.pop(name).roles()
            self.frozen = [role for role in self.frozen if role not in gone]
            for group in self.groups.values():
                group.roles = [role for role in group.roles if role not in gone]
        self.groups = {name: group for name, group in self.groups.items() if group.roles}

    def method_problems(self, key: str = "adapter") -> list[str]:
        """What is wrong with the methods' own settings, each by itself."""
        return [text for name, settings in self.chosen.items() for text in problems_of(settings, joined(key, name))]

    def contradictions(self, key: str) -> Iterator[str]:
        for settings in self.chosen.values():
            yield from settings.problems_beside(self.chosen, key)
        # Every role that the adapter has is in exactly one group or frozen.
        present = self.roles()
        owners: dict[str, str] = {}
        for role in self.frozen:
            if role not in present:
                yield _no_such_role(role, f"{key}.frozen", key)
        for name, group in self.groups.items():
            own = f"{key}.groups.{name}"
            if not group.roles:
                yield f"{own}.roles is empty: the group would train nothing. Name its roles, or remove it with ~{own}"
            for role in group.roles:
                if role not in present:
                    yield _no_such_role(role, f"{own}.roles", key)
                elif role in self.frozen:
                    yield f"role {role!r} is in {key}.frozen and in {own}. Remove it from one of them."
                elif role in owners:
                    both = f"{key}.groups.{owners[role]} and in {own}"
                    yield f"role {role!r} is in {both}; a role trains in one group. Remove it from one of them."
                owners.setdefault(role, name)
        missing = [role for role in present if role not in owners and role not in self.frozen]
        if missing:
            groups = ", ".join(self.groups) or "(none is defined)"
            yield (
                f"{key}.groups leaves {', '.join(missing)} without a group; add it to the roles of one of: {groups}; "
                f"or to {key}.frozen, where it is not to train."
            )


def _no_such_role(role: str, where: str, key: str) -> str:
    """What to say of a role that no parameter of this adapter has."""
    owners = {known: name for name in METHODS.names() for known in METHODS.settings(name).ROLES}
    if role not in owners:
        return f"{where} names {role!r}. {meant(role, list(owners))}Roles are: {', '.join(owners)}."
    return (
        f"{where} names {role}, which this adapter does not have: it is of {key}.{owners[role]}, as that is set. "
        f"Remove {role} there, or change {key}.{owners[role]}."
    )
