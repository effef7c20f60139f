"""The settings of a run: schema, checks, digest, run folder. Imports neither torch nor transformers."""

from mmadapter.config.compose import load_run_config, save_config, typed
from mmadapter.config.data import READERS, DataConf, ReadingConf, SourceConf
from mmadapter.config.derived import comparison_conf, variant_conf
from mmadapter.config.digest import settings_digest
from mmadapter.config.engine import EngineConf
from mmadapter.config.optimizer import OptimizerConf
from mmadapter.config.run import ComparisonConf, EvalConf, RunConf
from mmadapter.config.task import TaskConf
from mmadapter.config.training import TrainingConf
from mmadapter.config.validate import validate
from mmadapter.config.vision import VisionConf
from mmadapter.hosts.settings import GenerationConf, HostConf
from mmadapter.methods import AdapterConf
from mmadapter.methods.settings import GroupConf
from mmadapter.settings import with_overrides

__all__ = [
    "READERS",
    "AdapterConf",
    "ComparisonConf",
    "DataConf",
    "EngineConf",
    "EvalConf",
    "GenerationConf",
    "GroupConf",
    "HostConf",
    "OptimizerConf",
    "ReadingConf",
    "RunConf",
    "SourceConf",
    "TaskConf",
    "TrainingConf",
    "VisionConf",
    "comparison_conf",
    "load_run_config",
    "save_config",
    "settings_digest",
    "typed",
    "validate",
    "variant_conf",
    "with_overrides",
]
