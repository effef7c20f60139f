"""From the command line's words to jobs and to spaces of a search."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from mmadapter.errors import InputError
from mmadapter.runs.search import Space, Span


def fixed_overrides(overrides: Sequence[Override]) -> list[str]:
    """What every job has."""
    return [
        f"{one.get_key_element()}={one.get_value_element_as_str()}" if not one.is_delete() else one.input_line or ""
        for one in overrides
        if not one.is_sweep_override()
    ]


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job of a grid; the last key varies fastest.

    Raises InputError for an interval, and for a range without a value.
    """
    values: dict[str, list[str]] = {}  # a key that is given twice: the last one counts
    for override in overrides:
        key = override.get_key_element()
        if override.is_interval_sweep():
            raise InputError(
                f"{key}: an interval has no list of values. Search in it with sweep.trials=N, or name the values: "
                f"{key}=VALUE,VALUE"
            )
        if override.is_sweep_override():
            values[key] = [f"{key}={value}" for value in listed(override)]
        else:
            values[key] = fixed_overrides([override])
    return [list(job) for job in itertools.product(*values.values())]


def spaces_of(overrides: Sequence[Override]) -> dict[str, Space]:
    """Key -> what a search may choose from: `interval(a,b)` (tags log and int), `range(a,b)`, or the words named."""
    return {one.get_key_element(): space_of(one) for one in overrides if one.is_sweep_override()}


def swept_keys(overrides: Sequence[Override]) -> list[str]:
    """The settings and groups that get more than one value, as they are called in a job's settings."""
    return [one.get_key_element().lstrip("+") for one in overrides if one.is_sweep_override()]


def listed(override: Override) -> list[str]:
    """The values of a choice or range. Raises InputError where there is none, as in range(5,5)."""
    values = list(override.sweep_string_iterator())
    if not values:
        raise InputError(f"{override.get_key_element()}: this range holds no value: {override.input_line}")
    return values


def space_of(override: Override) -> Space:
    """Raises InputError for a range without a value."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None and sweep.end is not None
        whole = "int" in sweep.tags or isinstance(sweep.start, int)
        return Span(sweep.start, sweep.end, log="log" in sweep.tags, whole=whole)
    words = listed(override)
    if isinstance(sweep, RangeSweep) and "log" not in sweep.tags:
        numbers = list(sweep.range())
        whole = all(isinstance(number, int) for number in numbers)
        return Span(numbers[0], numbers[-1], whole=whole, step=sweep.step)
    return words
