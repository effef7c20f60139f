"""A search over settings with Optuna (an extra): its spaces from the command line, its trials, a study on disk.

A proposal depends on the seed, the trial's number and the results so far. So a search that was killed goes on with the
very trials that it would have had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mmadapter.errors import InputError

STUDY_FILE = "study.sqlite"
STARTUP_TRIALS = 10  # at random, before proposals follow the results


def spaces_of(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Key -> what a search may choose from: `interval(a,b)` (tags log and int), `range(a,b)`, or the words named.

    Raises InputError where nothing is named to search in, and for what Optuna cannot search.
    """
    spaces: dict[str, BaseDistribution] = {}
    for override in (one for one in overrides if one.is_sweep_override()):
        key, sweep, step = override.get_key_element(), override.value(), None
        log = isinstance(sweep, IntervalSweep) and "log" in sweep.tags
        if isinstance(sweep, IntervalSweep):
            low, high = sweep.start, sweep.end
            whole = "int" in sweep.tags or isinstance(low, int)
        elif isinstance(sweep, RangeSweep) and "log" not in sweep.tags:
            numbers = list(sweep.range())
            low, high, step = numbers[0], numbers[-1], sweep.step
            whole = all(isinstance(number, int) for number in numbers)
        else:
            spaces[key] = CategoricalDistribution(list(override.sweep_string_iterator()))
            continue
        assert low is not None and high is not None
        try:
            if whole:
                spaces[key] = IntDistribution(int(low), int(high), log=log, step=int(step or 1))
            else:
                spaces[key] = FloatDistribution(low, high, log=log, step=step)
        except ValueError as error:
            raise InputError(
                f"{key.lstrip('+')}: cannot be searched from {low:g} to {high:g}: {error}. "
                "Give the lower end first; a logarithmic one must be above 0."
            ) from error
    if not spaces:
        raise InputError(
            "sweep.trials needs a setting to search in, a range or several values: "
            "'optimizer.base_lr=tag(log,interval(1e-4,1e-1))' or adapter.prompts.layers=10,20,30"
        )
    return spaces


def corners_of(spaces: Mapping[str, BaseDistribution]) -> dict[str, list[str]]:
    """Trials that a search may meet, by name: each word and both ends of a space, the other keys at their first."""
    ends: dict[str, list[str]] = {}
    for key, space in spaces.items():
        if isinstance(space, CategoricalDistribution):
            ends[key] = [str(word) for word in space.choices]
        else:
            assert isinstance(space, IntDistribution | FloatDistribution)
            ends[key] = [repr(space.low), repr(space.high)]
    first = {key: values[0] for key, values in ends.items()}
    return {
        f"{key}={value}": [f"{one}={word}" for one, word in {**first, key: value}.items()]
        for key, values in ends.items()
        for value in values
    }


class Search:
    """The study in FOLDER/study.sqlite: asks for trials, tells their results. A trial is key=value words."""

    def __init__(self, folder: Path, spaces: dict[str, BaseDistribution], *, direction: str, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.spaces, self.seed = spaces, seed
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

    def unfinished(self) -> dict[int, list[str]]:
        """Trials that were asked for and have no result: those of a search that was killed."""
        whole = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.params.keys() == self.spaces.keys():
                whole[trial.number] = self._words(trial.params)
            else:  # killed within `ask`: no job of it has begun
                self.tell(trial.number, None)
        return whole

    def ask(self, parallel: int) -> tuple[int, list[str]]:
        """Number and words of the next proposal; `parallel`: how many trials run at the same time."""
        seed = (1_000_003 * self.seed + self.asked) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=parallel > 1
        )
        trial = self.study.ask(self.spaces)
        return trial.number, self._words(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """The result of a trial; None = it failed, which counts as a trial and teaches nothing."""
        self.study.tell(number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)

    def _words(self, params: Mapping[str, Any]) -> list[str]:
        """Every digit of a number, a word as it is."""
        values = {key: params[key] for key in self.spaces}
        return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in values.items()]
