"""A search over settings with Optuna: its spaces from the command line, its trials, a study on disk.

A proposal depends on the seed, the trial's number and the results so far. So a search that was killed goes on with the
very trials that it would have had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from mmadapter.errors import InputError
from mmadapter.files import locked

STUDY_FILE = "study.sqlite"
LOCK_FILE = ".searching"
STARTUP_TRIALS = 10  # at random, before proposals follow the results


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included; `log`: equally likely in each power of ten."""

    low: float
    high: float
    log: bool = False
    whole: bool = False  # integers
    step: float | None = None


Space = Span | Sequence[str]  # a sequence: one of these words


@dataclass(frozen=True)
class Trial:
    """One proposal: its number in the study, and key -> value as words of the command line."""

    number: int
    values: Mapping[str, str]

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.values.items()]


def spaces_of(overrides: Sequence[Override]) -> dict[str, Space]:
    """Key -> what a search may choose from: `interval(a,b)` (tags log and int), `range(a,b)`, or the words named.

    Raises InputError for a range without a value.
    """
    return {one.get_key_element(): _space_of(one) for one in overrides if one.is_sweep_override()}


def _space_of(override: Override) -> Space:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None and sweep.end is not None
        whole = "int" in sweep.tags or isinstance(sweep.start, int)
        return Span(sweep.start, sweep.end, log="log" in sweep.tags, whole=whole)
    words = listed_values(override)
    if isinstance(sweep, RangeSweep) and "log" not in sweep.tags:
        numbers = list(sweep.range())
        whole = all(isinstance(number, int) for number in numbers)
        return Span(numbers[0], numbers[-1], whole=whole, step=sweep.step)
    return words


def listed_values(override: Override) -> list[str]:
    """The values of a choice or range. Raises InputError where there is none, as in range(5,5)."""
    values = list(override.sweep_string_iterator())
    if not values:
        raise InputError(f"{override.get_key_element().lstrip('+')}: this range holds no value: {override.input_line}")
    return values


def ends_of(space: Space) -> list[str]:
    """All words of a space, or both ends of a span, as words of the command line."""
    if not isinstance(space, Span):
        return list(space)
    return [_word(int(end) if space.whole else float(end)) for end in (space.low, space.high)]


def _word(value: Any) -> str:
    """A proposal as a word of the command line: every digit of a number, a word as it is."""
    return value if isinstance(value, str) else repr(value)


class Search:
    """The study in FOLDER/study.sqlite: asks for trials, tells their results."""

    def __init__(self, folder: Path, spaces: Mapping[str, Space], *, direction: str, seed: int) -> None:
        """Raises InputError where Optuna is missing, and where there is nothing to search."""
        try:
            import optuna  # an extra, and a second to import
        except ImportError as error:
            raise InputError(
                "sweep.trials searches with Optuna, which is not installed: pip install -e '.[search]'. Without it, "
                "leave sweep.trials away and name the values: optimizer.base_lr=3e-3,9e-3"
            ) from error
        if not spaces:
            raise InputError(
                "sweep.trials needs a setting to search in, a range or several values: "
                "'optimizer.base_lr=tag(log,interval(1e-4,1e-1))' or adapter.prompts.layers=10,20,30"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.optuna, self.spaces, self.seed = optuna, spaces, seed
        self.distributions = {key: self._distribution(key, space) for key, space in spaces.items()}
        self.study = optuna.create_study(
            storage=f"sqlite:///{(folder / STUDY_FILE).resolve()}",
            study_name="search",
            direction=optuna.study.StudyDirection[direction.upper()],
            load_if_exists=True,
        )

    @property
    def asked(self) -> int:
        """Trials so far, failed ones included."""
        return len(self.study.get_trials(deepcopy=False))

    def unfinished(self) -> list[Trial]:
        """Trials that were asked for and have no result: those of a search that was killed."""
        whole = []
        for trial in self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,)):
            if trial.params.keys() == self.distributions.keys():
                whole.append(self._trial(trial.number, trial.params))
            else:  # killed within `ask`: no job of it has begun
                self.tell(trial.number, None)
        return whole

    def ask(self, parallel: int) -> Trial:
        """The next proposal; `parallel`: how many trials run at the same time."""
        number = self.asked
        self.study.sampler = self.optuna.samplers.TPESampler(
            seed=(1_000_003 * self.seed + number) % 2**32, n_startup_trials=STARTUP_TRIALS, constant_liar=parallel > 1
        )
        trial = self.study.ask(self.distributions)
        return self._trial(trial.number, trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """The result of a trial; None = it failed, which counts as a trial and teaches nothing."""
        states = self.optuna.trial.TrialState
        self.study.tell(number, value, state=states.FAIL if value is None else states.COMPLETE)

    def _trial(self, number: int, params: Mapping[str, Any]) -> Trial:
        return Trial(number, {key: _word(params[key]) for key in self.spaces})

    def _distribution(self, key: str, space: Space) -> Any:
        """Optuna's distribution of a space. Raises InputError for one that Optuna refuses."""
        kinds = self.optuna.distributions
        if not isinstance(space, Span):
            return kinds.CategoricalDistribution(list(space))
        try:
            if space.whole:
                step = 1 if space.step is None else int(space.step)
                return kinds.IntDistribution(int(space.low), int(space.high), log=space.log, step=step)
            return kinds.FloatDistribution(space.low, space.high, log=space.log, step=space.step)
        except ValueError as error:
            raise InputError(
                f"{key.lstrip('+')}: cannot be searched from {space.low:g} to {space.high:g}: {error}. "
                "Give the lower end first; a logarithmic one must be above 0."
            ) from error


def only_search(folder: Path) -> contextlib.AbstractContextManager[None]:
    """While inside, no other process of this machine goes on with this study. Raises InputError where one does."""
    return locked(folder / LOCK_FILE, f"Another process goes on with the search in {folder}. Wait for it, or end it.")
