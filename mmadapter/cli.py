"""Training and evaluation at the terminal: compose with Hydra, check, set threads, act; one message for an error."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmadapter.config import CHECKOUT, CONF, Conf, EvalConf, RunConf, renamed_message, typed, validate
from mmadapter.distributed.launchers import STARTER, launched
from mmadapter.distributed.start import STOPS, THREAD_VARIABLES, set_threads, start_ranks, thread_count
from mmadapter.errors import InputError, disk_trouble, printable
from mmadapter.runs.state import RunFolder
from mmadapter.settings import explained, nearest, open_defaults, to_plain
from mmadapter.sweeps import register_plugins
from mmadapter.sweeps.job import metric_of
from mmadapter.sweeps.settings import sweep_name
from mmadapter.terminal import own_command
from mmadapter.training.finished import show_if_finished
from mmadapter.training.preemption import hold_signals, ignore_signals, interrupts, signal_of

Act = Callable[[Any], Any]
HELP = ("-h", "--help", "--hydra-help", "--info", "-i", "--shell-completion", "-sc")


@cache
def register_schemas() -> None:
    """Put the schemas where the defaults lists of conf/train.yaml and conf/eval.yaml find them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=open_defaults(RunConf))
    store.store(name="eval_schema", node=open_defaults(EvalConf))
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)


def version_base() -> dict[str, str]:
    """Hydra 1.3 must be told to leave the working folder alone; 1.4 does, and warns when it is told."""
    major, minor = (int(part) for part in hydra.__version__.split(".")[:2])
    return {"version_base": "1.3"} if (major, minor) < (1, 4) else {}


def train(words: list[str] | None = None) -> None:
    """`mmadapter train ...`, or `python train.py ...`. Hydra reads the words from sys.argv."""
    command("train", RunConf, show_or_train)


def show_or_train(conf: RunConf) -> dict[str, Any]:
    """Shows a finished run, which needs no torch; goes through any other."""
    if (shown := show_if_finished(conf)) is not None:
        return shown
    from mmadapter.training.run import run

    return run(conf)


def evaluate(words: list[str] | None = None) -> None:
    """`mmadapter eval ...`, or `python eval.py ...`."""
    command("eval", EvalConf, "mmadapter.evaluation:run_evaluation")


def command(config_name: str, schema: type[Conf], act: str | Act, script: Path | None = None) -> None:
    """Compose conf/CONFIG_NAME.yaml with the command line, check it, and call `act` with the settings.

    `act` may be given as text ("package.module:function"): what loads torch is imported after the checks. `script`: a
    program of one's own that calls this, with a conf/ beside it; it is what the ranks of launch.processes=N start with.
    Leaves with status 2 and one message for bad input, with 128 + N after signal N.
    """
    folder = CONF if script is None else script.parent / "conf"
    register_schemas()
    wants_trace = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("0", "")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands exceptions over instead of printing them its own way
    started = False
    sys.argv[1:] = map(quoted, sys.argv[1:])
    register_plugins()
    if schema is RunConf:
        try:
            _choose_embedded(folder)
        except InputError as error:
            _stop(str(error), error, wants_trace)
    _print_settings(folder, config_name, schema)

    def job(composed: DictConfig) -> Any:
        nonlocal started
        started = True
        try:
            for handler in logging.getLogger().handlers:  # of Hydra: what readers warn of holds texts of the data
                handler.addFilter(_without_controls)
            conf = typed(composed, schema)
            _refuse_removed(conf, HydraConfig.get().overrides.task)
            if isinstance(conf, EvalConf):
                conf.given = task_keys(HydraConfig.get().overrides.task)
            validate(conf)
            if isinstance(conf, RunConf):
                _refuse_what_needs_multirun(conf)
            if starts_processes(conf):
                return _start(script, conf, wants_trace)
            set_threads(conf.threads)
            if isinstance(conf, RunConf):
                hold_signals()
            if isinstance(act, str):
                module, _, function = act.partition(":")
                result = getattr(importlib.import_module(module), function)(conf)
            else:
                result = act(conf)
            if isinstance(conf, EvalConf) or conf.dry_run or not result or (metric := metric_of(conf)) is None:
                return None
            return RunFolder(result["folder"]).metric(metric)  # other sweepers than ours go by it
        except InputError as error:  # here, because Hydra would print a line of its own
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise  # the other jobs of the sweep go on
            _stop(str(error), error, wants_trace)
        except OSError as error:
            message = disk_trouble(error, getattr(conf, "output", None) or conf.runs_root)
            if message is None:
                raise
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise InputError(message) from error
            _stop(message, error, wants_trace)

    try:
        with interrupts():
            hydra.main(config_path=str(folder), config_name=config_name, **version_base())(job)()
    except InputError as error:  # of a sweep
        _stop(str(error), error, wants_trace)
    except (CompactHydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra's own ValueErrors: optimizer=null; seed=999... of 5,000 digits
        of_a_word = str(error).startswith(("Config group override", "Exceeds the limit"))
        if started or (isinstance(error, ValueError) and not of_a_word):  # let the traceback be seen
            raise
        _stop(composition_message(error, schema), error, wants_trace)
    except KeyboardInterrupt as error:  # before the run could see to it
        number = signal_of(error)
        print(f"interrupted by {number.name}", file=sys.stderr)
        sys.exit(128 + number)
    finally:
        ignore_signals()  # Python takes a second to end


def quoted(word: str) -> str:
    """A setting whose value is no text in Hydra's grammar (~/my.json, 数据.json, my (1).json) in quotes for Hydra."""
    key, sign, value = word.partition("=")
    if not sign or word.startswith("-") or value[:1] in ("[", "{", "'", '"') or "'" in value or value[-1:] == "\\":
        return word
    parser = OverridesParser.create()
    for one in (word, f"{key}='{value}'"):
        try:
            parser.parse_override(one)
        except (HydraException, ValueError):  # ValueError: a number of 5,000 digits
            continue
        return one
    return word


def _choose_embedded(folder: Path) -> None:
    """Adds embedded=NAME to the command line of an experiment that names neither host nor data, where conf/ has one.

    So the experiment runs on the models and the world that are shipped. Raises InputError for one that names only one
    of the two: a tiny host would be judged by real data, or the other way round.
    """
    words = sys.argv[1:]
    name = next((word.partition("=")[2] for word in reversed(words) if word.startswith("experiment=")), "")
    file = folder / "embedded" / f"{name}.yaml"
    if not name or not file.is_file() or any(word.startswith("embedded=") or word in HELP for word in words):
        return

    # What host and data are as they are given, here or in conf/local.
    about = [word for word in words if word.lstrip("+~").partition("=")[0].partition(".")[0] in ("host", "data")]
    try:
        found = _compose(folder, "train", [f"experiment={name}", *about])
        data = OmegaConf.to_container(found.data, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return  # Hydra will say it
    has_host, has_data = found.host.path is not None, _names_a_place(data)
    if not has_host and not has_data:
        sys.argv.append(f"embedded={name}")
    elif has_host != has_data and "dry_run=true" not in words:
        given = {word.partition("=")[0] for word in words}
        missing = [
            word
            for word in str(yaml.safe_load(file.read_text(encoding="utf-8"))["embedded"]).split()
            if word.partition("=")[0] not in given and (not has_host or not word.startswith("host."))
        ]
        own = own_command()
        raise InputError(
            f"experiment={name} was given {'a host, but no data' if has_host else 'data, but no host'}. Name both, or "
            f"neither to try it on what comes with the package:\n  {own} {shlex.join(missing)}\n"
            f"  mmadapter train experiment={name}"
        )


def _names_a_place(data: Any) -> bool:
    """Whether a root or a path is set anywhere in the settings of data."""
    if not isinstance(data, dict):
        return False
    return any(data.get(key) is not None for key in ("root", "path")) or any(map(_names_a_place, data.values()))


def starts_processes(conf: RunConf | EvalConf) -> bool:
    """Whether this process is to start those that do the work: asked for, and not one of them itself."""
    is_dry = isinstance(conf, RunConf) and conf.dry_run
    return (conf.launch.processes or 1) > 1 and not is_dry and launched(os.environ) is None


def _start(script: Path | None, conf: RunConf | EvalConf, wants_trace: bool) -> None:
    """The same job as launch.processes processes; leaves with their exit status unless that is 0.

    Raises InputError where they failed within a sweep; a signal that asks to stop ends the sweep, too.
    """
    hydra_conf = HydraConfig.get()
    folders = [source.path for source in hydra_conf.runtime.config_sources if source.provider == "command-line"]
    does = "train" if isinstance(conf, RunConf) else "eval"
    if script is None and CHECKOUT is not None:  # found from any folder, whether it is installed or not
        script = CHECKOUT / f"{does}.py"
    own = ["-P", "-m", "mmadapter", does] if script is None else [str(script)]  # -P: not what lies in this folder
    command = [sys.executable, *own, *hydra_conf.overrides.task]
    command += ["--config-name", str(hydra_conf.job.config_name)]
    command += [word for folder in folders for word in ("--config-dir", folder)]
    count = conf.launch.processes or 1
    usable = thread_count(conf.threads, count)
    asked = {"HYDRA_FULL_ERROR": str(int(wants_trace))}  # as the user has set it, not as this process has
    status = start_ranks(command, count, os.environ | dict.fromkeys(THREAD_VARIABLES, usable) | asked)
    asked_to_stop = status - 128 in STOPS  # a process that was killed was not: other jobs of the sweep go on
    if status and hydra_conf.mode is RunMode.MULTIRUN and not asked_to_stop:
        raise InputError(f"The {count} processes ended with status {status}; what went wrong stands above.")
    if status:
        sys.exit(status)


def _print_settings(folder: Path, config_name: str, schema: type[Conf]) -> None:
    """`--cfg job`: print all settings, with the defaults of every method, reader and task that is there, and leave.

    Hydra would print them without our check, and without what it does not know. `-p KEY` prints a part.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd")  # _compose reads it
    asked, others = parser.parse_known_args(sys.argv[1:])
    if asked.cfg != "job":
        return
    overrides = [word for word in others if not word.startswith("-")]
    try:
        content = to_plain(typed(_compose(folder, config_name, overrides), schema))
        for part in (asked.package or "").split(".") if asked.package else ():
            content = content[part]
    except InputError as error:
        _stop(str(error), error, wants_trace=False)
    except (HydraException, OmegaConfBaseException, KeyError, TypeError, ValueError):
        return  # Hydra will say it
    print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), end="")
    sys.exit(0)


def _compose(folder: Path, config_name: str, overrides: list[str]) -> DictConfig:
    """What Hydra makes of these words, with the folder that --config-dir names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    own = parser.parse_known_args(sys.argv[1:])[0].config_dir
    searched = [f"hydra.searchpath=[file://{Path(own).resolve()}]"] if own else []
    with hydra.initialize_config_dir(str(folder), **version_base()):
        return hydra.compose(config_name, [*overrides, *searched])


def _refuse_what_needs_multirun(conf: RunConf) -> None:
    """Hydra submits and sweeps with -m only, and would otherwise run one job here without a word."""
    if STARTER in os.environ or HydraConfig.get().mode is RunMode.MULTIRUN:  # one of the processes of a submitted job
        return
    again = f"with -m only: mmadapter train -m {shlex.join(sys.argv[1:])}"
    if conf.cluster.name != "local" and not conf.dry_run:
        raise InputError(f"cluster={conf.cluster.name} submits {again}\n  To run on this machine: cluster=local")
    if words := [word for word in HydraConfig.get().overrides.task if word.lstrip("+~").startswith("sweep.")]:
        raise InputError(f"{' '.join(words)}: sweeps are {again}")


def _refuse_removed(conf: RunConf | EvalConf, overrides: Iterable[str]) -> None:
    """`~optimizer.base_lr` takes the key out of the files' settings, and the default comes back: seldom what is meant.

    Entries of mappings can be taken away (`~data.sources.captions`), and all of a mapping's (`~comparison`).
    """
    for word in overrides:
        holder: Any = conf
        *path, last = word.removeprefix("~").partition("=")[0].split(".")
        for part in path if word.startswith("~") else ():
            holder = holder.get(part) if isinstance(holder, dict) else getattr(holder, part, None)
        if word.startswith("~") and is_dataclass(holder) and last in [one.name for one in fields(holder)]:
            key, now = ".".join([*path, last]), getattr(holder, last)
            if now == {}:
                continue
            again = "its defaults" if is_dataclass(now) or isinstance(now, dict) else f"its default, {now}"
            raise InputError(
                f"{word}: a setting cannot be taken away; without it {key} is {again}. Set {key}=null for none (where "
                f"that is allowed), or {key}=VALUE. ~ is for entries with names: ~data.sources.NAME, ~comparison.NAME"
            )


def _without_controls(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _stop(message: str, error: Exception, wants_trace: bool) -> NoReturn:
    if wants_trace:
        raise error
    sys.stdout.flush()
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def composition_message(error: BaseException, schema: type[Conf]) -> str:
    """One message for settings that Hydra could not put together: which key or choice, and what was probably meant."""
    for word in sys.argv[1:]:
        if message := renamed_message(word.lstrip("+~").partition("=")[0]):
            return message
        if word.startswith("="):
            return (
                f"{word}: there is no name in front of the =. Settings are given as key=value, e.g. optimizer.epochs=3"
            )
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return explained(link, schema)
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            return _missing_choice(link)
    if isinstance(error, OverrideParseException):
        said = str(error).partition("See https")[0].strip()
        return f"{said}\n  Settings are given as key=value, e.g. optimizer.epochs=3 or experiment=scienceqa"
    if isinstance(error, ValueError) and str(error).startswith("Exceeds"):
        longest = max(sys.argv[1:], key=len)
        return f"{longest[:40]}...: a number of so many digits is none that a setting can have. Give a smaller one."
    if isinstance(error, ValueError):
        none = "; experiment=none for the bare defaults" if "experiment=null" in sys.argv[1:] else ""
        return f"{str(error).strip()} (null). A group is chosen by the name of one of its files: optimizer=v1{none}"
    return str(error).strip()


def _missing_choice(error: MissingConfigException) -> str:
    """A group has no such option: `experiment=scienseqa`."""
    group, _, wanted = str(error.missing_cfg_file).rpartition("/")
    if wanted.startswith("submitit"):
        return "cluster=slurm needs a package that is not installed: pip install 'hydra-submitit-launcher>=1.2'"
    if not group or not error.options:
        return str(error).strip()
    near = nearest(wanted, list(error.options), most=1)
    meant = f" Did you mean {group}={near[0]}?" if near else ""
    return f"There is no {group}={wanted}.{meant}\n  {group} can be: {', '.join(error.options)}"


def task_keys(overrides: Iterable[str]) -> list[str]:
    """The keys within the task that a command line sets: `task.generation.beams=4` gives generation.beams."""
    keys = (override.lstrip("+~").partition("=")[0] for override in overrides)
    return sorted({key.removeprefix("task.") for key in keys if key.startswith("task.")})
