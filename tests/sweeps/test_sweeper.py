"""`train.py -m` around runs that are made in a moment: what is refused, what is said, what is noted, and when."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from mmadapter import cli
from mmadapter.config import RunConf
from mmadapter.errors import InputError
from mmadapter.files import locked
from mmadapter.runs.folder import run_folder
from mmadapter.runs.sweep import read_sweep
from mmadapter.sweeps.job import Job
from mmadapter.sweeps.sweeper import batches, combinations
from tests.made_runs import made_run

CHECKOUT = Path(__file__).parents[2]
SCIENCEQA = ["evaluate=[scienceqa]", "sweep.metric=scienceqa.Avg"]
RATES = "optimizer.base_lr=tag(log,interval(1e-3,1e-1))"


def finished(conf):
    """A run with scores, but not of any other task than ScienceQA."""
    folder = run_folder(conf)
    if not folder.exists():
        made_run(folder, "finished", score=40.0 + conf.seed)
    return {"folder": folder}


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """`train(*words)` -> (status, stderr, sweep.json or None, how many jobs were started)."""
    (tmp_path / "conf").symlink_to(CHECKOUT / "conf")
    monkeypatch.setattr(cli, "hold_signals", lambda: None)
    monkeypatch.setattr(cli, "set_threads", lambda threads: None)

    def start(*words, act=finished, multirun=True):
        started = []
        sweep = tmp_path / "sweep"
        places = [f"runs_root={tmp_path / 'runs'}", f"hydra.sweep.dir={sweep}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *["-m"] * multirun, *words, *places])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # each start sets it
        status = 0
        try:
            cli.command("train", RunConf, lambda conf: started.append(conf) or act(conf), tmp_path / "train.py")
        except SystemExit as ended:
            status = ended.code
        noted = read_sweep(sweep) if (sweep / "sweep.json").exists() else None
        return status, capsys.readouterr().err, noted, len(started)

    return start


def refused(result, *said: str) -> None:
    """Nothing has begun; one message and status 2."""
    status, told, noted, started = result
    assert status == 2 and started == 0 and noted is None, (status, told)
    assert told.count("error: ") == 1 and "Traceback" not in told
    assert all(one in told for one in said), told


def test_a_trial_without_its_metric_is_said_and_makes_the_status_2(train):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    status, told, noted, started = train(
        "sweep.trials=2", RATES, "evaluate=[instruct]", "sweep.metric=instruct.exact_match"
    )
    assert status == 2 and started == 2
    assert told.count("the run has no instruct.exact_match") == 2 and "error: job 1 (optimizer.base_lr=" in told
    assert [job["failed"] for job in noted["jobs"]] == ["the run has no instruct.exact_match"] * 2


def test_jobs_that_would_be_compared_by_different_things_are_refused(train):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    tasks = "evaluate=[scienceqa],[instruct]"
    for words in (["seed=0"], ["sweep.trials=3"]):
        refused(train(tasks, *words), "scienceqa.Avg", "instruct.exact_match", "in sweep.metric")
    status, _, noted, started = train(tasks, "sweep.metric=validation_loss")
    assert (status, started, noted["metric"]) == (0, 2, "validation_loss")


def test_a_search_takes_its_metric_from_what_it_searches_in(train):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    _, told, noted, started = train("sweep.trials=1", "evaluate=[instruct],[instruct,scienceqa]")
    assert (started, noted["metric"], noted["direction"]) == (1, "instruct.exact_match", "maximize"), told


def test_refused_jobs_are_noted_before_the_first_starts_and_a_failed_one_before_the_next(train, tmp_path):
    seen = []

    def act(conf):
        seen.append([job["failed"] for job in read_sweep(tmp_path / "sweep")["jobs"]])
        if conf.seed == 0:
            raise RuntimeError("no luck")
        if conf.seed == 2:
            raise KeyboardInterrupt  # as SIGTERM does

    status, told, noted, _ = train("seed=0,1,2,-1", *SCIENCEQA, act=act)
    assert "seed=-1: must be at least 0." in seen[0][3] and seen[0][:3] == [None] * 3
    assert seen[1][0] == seen[2][0] == "RuntimeError: no luck" and len(seen) == 3
    assert status == 130 and "error: job 3 (seed=-1)" in told and noted["jobs"][0]["failed"] == "RuntimeError: no luck"


def test_what_the_host_cannot_carry_is_told_before_the_first_job_starts(train, tmp_path):
    seen = []

    def act(conf):
        seen.append([job["failed"] for job in read_sweep(tmp_path / "sweep")["jobs"]])
        return finished(conf)

    status, told, _, started = train("adapter.prompts.layers=2,99", "host=tiny", *SCIENCEQA, act=act)
    assert (status, started) == (2, 1) and "adapter.prompts.layers=99" in seen[0][1] and seen[0][0] is None, told


@pytest.mark.parametrize("trials", [[], ["sweep.trials=2"]])
def test_a_range_without_a_value_is_refused(train, trials):
    refused(train("seed=range(5,5)", *trials), "seed: this range holds no value")


def test_settings_that_no_trial_could_use_are_refused_before_the_search_begins(train, tmp_path):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    refused(train("sweep.trials=0", RATES), "sweep.trials=0: must be at least 1.")
    refused(train("sweep.trials=2", "sweep.parallel=0", RATES), "sweep.parallel=0")
    refused(train("sweep.trials=2", RATES, "sweep.metric=instruct.exactmatch", "evaluate=[instruct]"), "Did you mean")
    refused(
        train("sweep.trials=2", RATES, "adapter.prompts.layers=interval(1,8)"),
        "'adapter.prompts.layers=tag(int,interval(1,8))'",
    )
    refused(train("sweep.trials=2", "seed=1"), "sweep.trials needs a setting to search in")
    refused(train("sweep.trials=2", "optimizer.base_lr=interval(1,0.1)"), "base_lr: cannot be searched from 1 to 0.1")
    assert not (tmp_path / "sweep" / "study.sqlite").exists()


def test_without_optuna_the_message_says_what_to_install(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    refused(train("sweep.trials=2", RATES), "pip install 'optuna>=4'")


def test_two_processes_do_not_go_on_with_one_search(train, tmp_path):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    with locked(tmp_path / "sweep" / ".searching", "busy"):
        refused(train("sweep.trials=2", RATES, *SCIENCEQA), "Another process goes on with the search")


def test_a_part_of_a_search_that_cannot_run_does_not_keep_the_rest_from_it(train):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    status, told, noted, started = train("sweep.trials=6", *SCIENCEQA, "seed=-1,1")
    failed = [job["failed"] for job in noted["jobs"]]
    assert status == 2 and 0 < started == failed.count(None) < 6
    assert told.count("seed=-1: must be at least 0.") == 6 - started


def test_trials_of_the_same_values_that_would_run_at_the_same_time_are_one_run(train):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    status, told, noted, started = train("sweep.trials=4", "sweep.parallel=4", *SCIENCEQA, "seed=1,2")
    assert status == 0, told
    assert len(noted["jobs"]) == 4 and started == len({job["run"] for job in noted["jobs"]}) <= 2


@pytest.mark.parametrize("dry", [[], ["dry_run=true"]])
def test_what_is_asked_of_a_sweep_is_refused_without_m(train, dry):
    refused(train("sweep.trials=4", "seed=1", *dry, multirun=False), "mmadapter train -m sweep.trials=4 seed=1")


def test_a_refused_job_is_not_taken_for_another_one_of_the_same_folder(train):
    status, told, noted, started = train("optimizer.micro_batch_size=4,5", "optimizer.batch_size=8")
    assert status == 2 and started == 1 and "optimizer.micro_batch_size=5 does not divide" in told


def test_run_names_one_folder_for_all_jobs(train):
    _, told, _, started = train("seed=0,1", "run=mine")
    assert started == 0 and "run=mine names one folder for all jobs. Leave it away" in told
    _, told, _, started = train("cluster.nodes=1,2")
    assert started == 0 and "what they differ in changes no result" in told


def test_the_sweeps_file_holds_a_command_that_can_be_pasted_and_what_was_swept(train):
    _, _, noted, _ = train("seed=0,1", *SCIENCEQA, "optimizer.base_lr=choice(1e-3, 2e-3)")
    assert shlex.split(noted["command"])[:3] == ["mmadapter", "train", "-m"]
    assert "optimizer.base_lr=choice(1e-3, 2e-3)" in shlex.split(noted["command"])
    assert noted["swept"] == ["seed", "optimizer.base_lr"]


def parsed(*words: str):
    return OverridesParser.create().parse_overrides(list(words))


def test_a_grid_is_every_combination_the_last_key_fastest():
    words = parsed("a=1,2", "b=x", "~c", "d=range(0,2)")
    assert combinations(words) == [[f"a={a}", "b=x", "~c", f"d={d}"] for a in (1, 2) for d in (0, 1)]
    with pytest.raises(InputError, match="sweep.trials=N"):
        combinations(parsed("a=interval(0,1)"))


def test_a_launcher_gets_jobs_of_consecutive_numbers():
    def numbers(*jobs, most=None):
        made = [Job(number, [], Path(), bool) for number in jobs]
        return [[job.number for job in batch] for batch in batches(made, most)]

    assert numbers(0, 1, 3, 4, 7) == [[0, 1], [3, 4], [7]]
    assert numbers(0, 1, 2, 3, 4, most=2) == [[0, 1], [2, 3], [4]]


class OtherSweeper(Sweeper):
    """A sweeper of somebody else, which goes by what the jobs return."""

    returned: list[float] = []

    def __init__(self, **settings):
        pass

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        jobs = [[*arguments, f"seed={seed}"] for seed in (1, 2)]
        self.returned.extend(result.return_value for result in self.launcher.launch(jobs, 0))


@pytest.mark.parametrize("metric,values", [("scienceqa.Avg", [41, 42]), ("validation_loss", [1.59, 1.58])])
def test_other_sweepers_get_the_metric_of_each_job(train, monkeypatch, metric, values):
    monkeypatch.setitem(Plugins.instance().class_name_to_class, "hydra_plugins.other.Sweeper", OtherSweeper)
    monkeypatch.setattr(OtherSweeper, "returned", [])
    words = ["evaluate=[scienceqa]", f"sweep.metric={metric}", "hydra.sweeper._target_=hydra_plugins.other.Sweeper"]
    status, told, _, started = train(*words)
    assert (status, started) == (0, 2), told
    assert OtherSweeper.returned == pytest.approx(values)


def modules_after(code: str, folder: Path) -> set[str]:
    code = f"import runpy, sys; {code}; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    return set(told.stdout.splitlines()[-1].split())


def test_a_run_that_is_no_sweep_imports_no_sweeper(tmp_path):
    script = CHECKOUT / "train.py"
    run = f"sys.argv[:] = ['train.py', '--cfg', 'hydra']; runpy.run_path({str(script)!r}, run_name='__main__')"
    imported = modules_after(run, tmp_path)
    assert "mmadapter.sweeps" in imported
    assert imported.isdisjoint({"mmadapter.sweeps.sweeper", "mmadapter.sweeps.launcher", "submitit", "optuna"})


def test_hydras_scan_for_plugins_imports_no_code_of_ours(tmp_path):
    imported = modules_after("from hydra.core.plugins import Plugins; Plugins.instance()", tmp_path)
    assert not {name for name in imported if name.startswith("mmadapter")}
