"""A search over settings with Optuna: which trial comes next, and a study on disk that survives being killed.

A proposal depends on the seed, the trial's number and the results so far, so that a search that was interrupted goes on
with the very trials that it would have had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """One proposal: its number in the study, and the value of each setting as it is typed."""

    number: int
    values: Mapping[str, str]

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.values.items()]


class Search:
    """The study in FOLDER/study.sqlite: asks for trials, tells their results."""

    def __init__(self, folder: Path, spaces: Mapping[str, Space], *, direction: str, seed: int) -> None:
        """Raises InputError where Optuna is missing, or where there is nothing to search."""
        optuna = imported_optuna()
        if not spaces:
            raise InputError(
                "sweep.trials needs a setting to search in, a range or several values: "
                "'optimizer.base_lr=tag(log,interval(1e-4,1e-1))' or adapter.prompts.layers=10,20,30"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.spaces, self.seed = spaces, seed
        self.distributions = {key: distribution(key, space) for key, space in spaces.items()}
        self.study = optuna.create_study(
            storage=f"sqlite:///{(folder / STUDY_FILE).resolve()}",
            study_name="search",
            direction=direction,
            load_if_exists=True,
        )

    @property
    def asked(self) -> int:
        """Trials so far, failed ones included."""
        return len(self.study.get_trials(deepcopy=False))

    def unfinished(self) -> list[Trial]:
        """Trials that were asked for and have no result: those of a search that was killed."""
        from optuna.trial import TrialState

        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # one that was killed between its number and its last value has the rest proposed now
        return [self._trial(one.number, self._completed(one)) for one in running]

    def ask(self, parallel: int) -> Trial:
        """The next proposal; `parallel`: how many run at the same time."""
        import optuna

        number = self.asked
        self.study.sampler = optuna.samplers.TPESampler(
            seed=(1_000_003 * self.seed + number) % 2**32, n_startup_trials=STARTUP_TRIALS, constant_liar=parallel > 1
        )
        trial = self.study.ask(self.distributions)
        return self._trial(trial.number, trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """The result of a trial; None = it failed, which counts as a trial and teaches nothing."""
        from optuna.trial import TrialState

        self.study.tell(number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)

    def _completed(self, frozen: Any) -> dict[str, Any]:
        import optuna

        if frozen.params.keys() == self.distributions.keys():
            return dict(frozen.params)
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        return {key: trial._suggest(key, one) for key, one in self.distributions.items()}

    def _trial(self, number: int, params: Mapping[str, Any]) -> Trial:
        return Trial(number, {key: typed_value(params[key]) for key in self.spaces})


def typed_value(value: Any) -> str:
    """A proposal as it is typed: every digit of a number, a word as it is."""
    return value if isinstance(value, str) else repr(value)


def distribution(key: str, space: Space) -> Any:
    """Optuna's distribution of a space. Raises InputError for one that it cannot be."""
    from optuna import distributions

    if not isinstance(space, Span):
        return distributions.CategoricalDistribution(list(space))
    try:
        if space.whole:
            step = 1 if space.step is None else int(space.step)
            return distributions.IntDistribution(int(space.low), int(space.high), log=space.log, step=step)
        return distributions.FloatDistribution(space.low, space.high, log=space.log, step=space.step)
    except ValueError as error:
        raise InputError(
            f"{key}: cannot be searched from {space.low:g} to {space.high:g}: {error}. Give the lower end first; "
            "a logarithmic one must be above 0."
        ) from error


def imported_optuna() -> Any:
    """The package. Raises InputError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "sweep.trials searches with Optuna, which is not installed: pip install -e '.[search]'. Without it, "
            "leave sweep.trials away and name the values: optimizer.base_lr=3e-3,9e-3"
        ) from error
    return optuna


def only_search(folder: Path) -> contextlib.AbstractContextManager[None]:
    """While inside, no other process of this machine goes on with this study. Raises InputError where one does."""
    return locked(folder / LOCK_FILE, f"Another process goes on with the search in {folder}. Wait for it, or end it.")
