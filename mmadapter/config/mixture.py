"""How the sources share the steps: fixed samples of every source, or whole steps in turns (design decision 4)."""

from __future__ import annotations

from collections.abc import Iterator

from mmadapter.config.run import RunConf
from mmadapter.errors import InputError


def samples_per_step(conf: RunConf) -> dict[str, int] | None:
    """Source -> samples in every step; None where whole steps of one source come in turns.

    Disjoint groups without numbers of their own give every source the same share of optimizer.batch_size. Raises
    InputError where `mixture_problems` finds something.
    """
    if problem := next(mixture_problems(conf), None):
        raise InputError(problem)
    sources = conf.data.sources
    given = {name: source.samples_per_step for name, source in sources.items() if source.samples_per_step is not None}
    if given:
        return given
    return dict.fromkeys(sources, conf.optimizer.batch_size // len(sources)) if narrowed_group(conf) else None


def holds_every_source(conf: RunConf) -> bool:
    """Whether each step holds samples of every source: asked for by number, or needed by disjoint groups."""
    counted = any(source.samples_per_step is not None for source in conf.data.sources.values())
    return counted or narrowed_group(conf) is not None


def narrowed_group(conf: RunConf) -> str | None:
    """The first group that does not learn from all sources; None where all sources train the same groups."""
    for name, group in conf.adapter.groups.items():
        if group.sources is not None and set(group.sources) != set(conf.data.sources):
            return name
    return None


def mixture_problems(conf: RunConf) -> Iterator[str]:
    """Weights and samples per step that contradict each other, the groups or the batch."""
    if not conf.data.sources:
        return
    weighted = [name for name, source in conf.data.sources.items() if source.weight is not None]
    counted = [name for name, source in conf.data.sources.items() if source.samples_per_step is not None]
    if weighted and counted:
        yield (
            f"data.sources.{counted[0]}.samples_per_step puts samples of every source into each step, "
            f"data.sources.{weighted[0]}.weight lets whole steps of one source come in turns. Set one of them to null."
        )
    yield from _incomplete(conf, weighted, "weight")
    yield from _incomplete(conf, counted, "samples_per_step")
    yield from _weights_of_disjoint_groups(conf, weighted)
    yield from _share_problems(conf, counted)
    yield from _idle_sources(conf)
    for name, reading in conf.data.validation.items():
        if reading.weight is not None or reading.samples_per_step is not None:
            yield f"data.validation.{name} has weight or samples_per_step, but validation reads all. Set it to null."


def _incomplete(conf: RunConf, given: list[str], setting: str) -> Iterator[str]:
    if missing := [name for name in conf.data.sources if given and name not in given]:
        yield f"data.sources.{missing[0]}.{setting} is not set, but {given[0]} has one. Set it on all sources or none."


def _weights_of_disjoint_groups(conf: RunConf, weighted: list[str]) -> Iterator[str]:
    narrowed = narrowed_group(conf)
    if weighted and narrowed:
        nulls = " ".join(f"data.sources.{name}.weight=null" for name in weighted)
        yield (
            f"data.sources.{weighted[0]}.weight lets whole steps of one source come in turns, but "
            f"adapter.groups.{narrowed}.sources lets only some sources move a group: every step must hold samples of "
            f"every source. Remove the weights: {nulls} (then equal shares of optimizer.batch_size, or "
            "data.sources.NAME.samples_per_step=N on each)"
        )


def _share_problems(conf: RunConf, counted: list[str]) -> Iterator[str]:
    sources, batch = conf.data.sources, conf.optimizer.batch_size
    if len(counted) == len(sources):
        total = sum(source.samples_per_step or 0 for source in sources.values())
        if total != batch:
            yield (
                f"data.sources.*.samples_per_step add up to {total}, but optimizer.batch_size={batch} is what the "
                f"learning rate is taken from. Set optimizer.batch_size={total}, or other shares."
            )
    elif not counted and narrowed_group(conf) and batch % len(sources):
        fitting = max(batch // len(sources), 1) * len(sources)
        yield (
            f"optimizer.batch_size={batch} cannot be shared equally by the {len(sources)} sources "
            f"({', '.join(sources)}), of which each step needs samples. Set optimizer.batch_size={fitting}, or "
            "data.sources.NAME.samples_per_step on each."
        )


def _idle_sources(conf: RunConf) -> Iterator[str]:
    groups = conf.adapter.groups
    for name in conf.data.sources:
        if groups and not any(group.sources is None or name in group.sources for group in groups.values()):
            yield (
                f"data.sources.{name} moves no group: no adapter.groups.NAME.sources has it. Add it to one of "
                f"{', '.join(groups)}, or remove it: ~data.sources.{name}"
            )
