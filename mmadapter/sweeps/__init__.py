"""Sweeps and searches: what Hydra, hydra-submitit-launcher and Optuna lack. Nothing below knows this room.

The imports stand inside functions: settings are read without Hydra, and a run that is no sweep imports no sweeper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper


def register_plugins() -> None:
    """Makes the sweeper and the SLURM launcher known to Hydra, under the names that conf/ gives them.

    `Plugins.register` alone does not do: Hydra makes only plugins whose name begins with "hydra_plugins.".
    """
    from hydra.core.plugins import Plugins

    makers: Any = {"hydra_plugins.mmadapter.Sweeps": sweeps, "hydra_plugins.mmadapter.SlurmJobs": slurm_jobs}
    Plugins.instance().class_name_to_class.update(makers)


def sweeps(**settings: Any) -> Sweeper:
    from mmadapter.sweeps.sweeper import Sweeps

    return Sweeps(**settings)


def slurm_jobs(**settings: Any) -> Launcher:
    from mmadapter.sweeps.launcher import SlurmJobs

    return SlurmJobs(**settings)
