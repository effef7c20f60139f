"""What is refused before the first job starts: values that no setting takes, settings, jobs of different metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mmadapter.errors import InputError
from mmadapter.runs.search import Space, Span, typed_value

if TYPE_CHECKING:
    from mmadapter.config import RunConf

Name = TypeVar("Name")
Compose = Callable[[list[str]], "RunConf"]
NO_SETTINGS = (InputError, HydraException, OmegaConfBaseException)  # what composing a job may raise


def refused(confs: Mapping[Name, RunConf]) -> dict[Name, InputError]:
    """The jobs whose settings cannot be used, and why."""
    from mmadapter.config import validate

    found: dict[Name, InputError] = {}
    for name, conf in confs.items():
        try:
            validate(conf)
        except InputError as error:
            found[name] = error
    return found


def one_metric(confs: Mapping[str, RunConf]) -> str | None:
    """What all these jobs (name -> settings) are compared by. Raises InputError where they differ in that."""
    from mmadapter.runs.objective import metric_of

    first: dict[str | None, str] = {}
    for name, conf in confs.items():
        first.setdefault(metric_of(conf), name)
    if len(first) > 1:
        each = "; ".join(f"{name}: {metric or 'nothing'}" for metric, name in first.items())
        raise InputError(
            f"The jobs would be compared by different things ({each}). Name one in sweep.metric that all have, "
            "e.g. sweep.metric=validation_loss"
        )
    return next(iter(first), None)


def metric_of_search(confs: Mapping[str, RunConf]) -> str:
    """What a search goes by; `confs` are its corners.

    Raises InputError where no trial could run, and where trials would have no such number, or different ones.
    """
    errors = refused(confs)
    if len(errors) == len(confs):
        raise next(iter(errors.values()))
    metric = one_metric({name: conf for name, conf in confs.items() if name not in errors})
    if metric is None:
        raise InputError("sweep.trials: the run has no scored task and no validation data. Name one in sweep.metric.")
    return metric


def corners(compose: Compose, fixed: list[str], spaces: Mapping[str, Space]) -> dict[str, RunConf]:
    """Settings that a search may meet: each word and both ends of every space, other keys at the first of theirs.

    Raises InputError, or what Hydra raises, for a value that its setting does not take.
    """
    ends = {key: ends_of(space) for key, space in spaces.items()}
    base = {key: values[0] for key, values in ends.items()}
    found: dict[str, RunConf] = {}
    for key, values in ends.items():
        for value in values:
            try:
                found[f"{key}={value}"] = compose([*fixed, *_words({**base, key: value})])
            except NO_SETTINGS:
                _refuse_fractions(compose, fixed, spaces, base)
                raise
    return found or {"all": compose(fixed)}


def refuse_idle_keys(confs: Mapping[str, RunConf], spaces: Mapping[str, Space]) -> None:
    """Raises InputError for a searched key that changes no result, such as `engine`; `confs`: the corners."""
    from mmadapter.runs.folder import settings_digest

    for key, space in spaces.items():
        ends = ends_of(space)
        if len(set(ends)) > 1 and len({settings_digest(confs[f"{key}={end}"]) for end in ends}) == 1:
            raise InputError(
                f"{key} changes no result: its trials would be one and the same run. Leave it out of the search."
            )


def ends_of(space: Space) -> list[str]:
    """The values of a space to look at, as they are typed."""
    if not isinstance(space, Span):
        return list(space)
    return [typed_value(int(end) if space.whole else float(end)) for end in (space.low, space.high)]


def _refuse_fractions(compose: Compose, fixed: list[str], spaces: Mapping[str, Space], base: dict[str, str]) -> None:
    """Raises InputError that names the tag `int` for an interval of a setting that takes whole numbers only."""
    words = {key: value for key, value in base.items() if not isinstance(spaces[key], Span)}

    def can_be(key: str, value: str) -> bool:
        try:
            compose([*fixed, *_words({**words, key: value})])
        except NO_SETTINGS:
            return False
        return True

    for key, space in spaces.items():
        if isinstance(space, Span) and not space.whole and not can_be(key, base[key]):
            whole = f"interval({math.ceil(space.low)},{math.floor(space.high)})"
            if can_be(key, str(math.ceil(space.low))):
                raise InputError(f"{key} takes whole numbers only. Search among them with '{key}=tag(int,{whole})'")


def _words(values: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def shared_folder(one: RunConf, other: RunConf) -> str:
    """Why two jobs have the same run folder, and what to do."""
    from mmadapter.runs.folder import settings_digest

    if one.run is not None and settings_digest(one) != settings_digest(other):
        return f"run={one.run} names one folder for all jobs. Leave it away: each gets a folder of its own."
    return (
        "what they differ in changes no result. Sweep over something else, or give each a folder of its own in a "
        "command of its own: run=NAME"
    )
