"""The settings of a run: schema, checks, digest, run folder. Imports neither torch nor transformers."""

from mmadapter.config.adapter import ROLES, AdapterConf, GroupConf
from mmadapter.config.compose import load_run_config, save_config, typed
from mmadapter.config.derived import comparison_conf, variant_conf
from mmadapter.config.host import HostConf
from mmadapter.config.run import ComparisonConf, EvalConf, RunConf
from mmadapter.config.validate import validate
from mmadapter.settings import with_overrides
from mmadapter.training.settings import EngineConf, OptimizerConf, TrainingConf

__all__ = [
    "ROLES",
    "AdapterConf",
    "ComparisonConf",
    "EngineConf",
    "EvalConf",
    "GroupConf",
    "HostConf",
    "OptimizerConf",
    "RunConf",
    "TrainingConf",
    "comparison_conf",
    "load_run_config",
    "save_config",
    "typed",
    "validate",
    "variant_conf",
    "with_overrides",
]
