"""A run goes on under other settings only when told; and without the adapter that it once started from."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmadapter.config import validate
from mmadapter.errors import InputError
from mmadapter.hosts.settings import HostConf
from mmadapter.runs.journal import read_metrics
from mmadapter.training.run import device_of, run
from tests.models import built
from tests.training.test_run import assert_same_adapter, losses
from tests.training.tiny_run import save_inputs, tiny_conf


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def conf_of(inputs, runs, *overrides):
    """A short run named `mine`, 5 steps, without validation and comparison."""
    conf = tiny_conf(inputs, runs, "run=mine", "optimizer.epochs=0.5", "evaluate=[]", *overrides)
    conf.comparison = {}
    return conf


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("finished")
    run(conf_of(inputs, runs, "evaluate=[scienceqa]"))
    return runs


@pytest.fixture
def runs(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def settings(folder):
    return (folder / "config.yaml").read_text()


CHANGED = ("evaluate=[scienceqa]", "optimizer.epochs=0.8", "optimizer.base_lr=0.02")


def test_changed_settings_are_refused_with_the_way_to_go_on(inputs, runs):
    before = settings(runs / "mine")
    with pytest.raises(InputError) as refused:
        run(conf_of(inputs, runs, *CHANGED))
    text = str(refused.value)
    assert "optimizer.epochs: 0.5 -> 0.8" in text and "optimizer.base_lr: 0.04 -> 0.02" in text
    assert "resume=changed" in text and settings(runs / "mine") == before


def test_told_so_a_run_goes_on_and_what_differs_is_printed_and_kept(inputs, runs, capsys):
    folder = runs / "mine"
    before, score = losses(folder), (folder / "eval" / "scienceqa" / "metrics.json").stat().st_mtime_ns
    summary = run(conf_of(inputs, runs, "resume=changed", *CHANGED))
    output = capsys.readouterr().out
    assert "continuing at step 5 of 8 under changed settings (there -> now):\n" in output
    assert "  optimizer.base_lr: 0.04 -> 0.02" in output
    assert summary["training"]["steps"] == 8 and losses(folder)[:5] == before
    (event,) = [one for one in read_metrics(folder / "metrics.jsonl", "event") if one["event"] == "resumed"]
    assert "optimizer.epochs: 0.5 -> 0.8" in event["changed"] and event["step"] == 5
    assert (event["engine"], event["processes"]) == ("single", 1)
    assert "base_lr: 0.02" in settings(folder) and json.loads((folder / "finished.json").read_text())
    assert (folder / "eval" / "scienceqa" / "metrics.json").stat().st_mtime_ns != score, "scores of the new adapter"
    run(conf_of(inputs, runs, *CHANGED))  # these are its settings now
    assert "is finished; nothing is trained again" in capsys.readouterr().out


def test_a_change_of_schedule_alone_is_let_through_after_a_stop_too(inputs, runs):
    """Killed after it went on, before the next checkpoint: the old schedule stands in the checkpoint."""
    folder = runs / "mine"
    (folder / "finished.json").unlink()
    text = settings(folder).replace("epochs: 0.5", "epochs: 0.8", 1)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"another schedule \(epochs was 0.5, is 0.8\).*resume=changed"):
        run(conf_of(inputs, runs, "evaluate=[scienceqa]", "optimizer.epochs=0.8"))
    assert run(conf_of(inputs, runs, "resume=changed", "optimizer.epochs=0.8"))["training"]["steps"] == 8


def unfinished(runs):
    (runs / "mine" / "finished.json").unlink()
    return runs


def test_other_data_under_the_same_name_is_refused_and_let_through(inputs, runs, tmp_path):
    world = tmp_path / "moved" / "world"
    shutil.copytree(inputs / "world", world)
    moved = ("evaluate=[scienceqa]", f"data.root={world}")
    run(conf_of(inputs, unfinished(runs), *moved))
    problems = next(world.rglob("problems.json"))
    problems.write_text(problems.read_text().replace('"question": "', '"question": "the '))
    told = r"learned from other data: .* changed in data.sources.questions, data.validation.*resume=changed"
    with pytest.raises(InputError, match=told):
        run(conf_of(inputs, unfinished(runs), *moved))
    run(conf_of(inputs, runs, *moved, "resume=changed", "optimizer.epochs=0.8"))
    run(conf_of(inputs, unfinished(runs), *moved, "optimizer.epochs=0.8"))  # this is its data now


def test_another_type_of_the_host_is_refused_and_can_be_kept(inputs, tmp_path, monkeypatch):
    """`auto` as on a machine with a GPU."""
    run(conf_of(inputs, tmp_path, "host.dtype=auto"))
    monkeypatch.setattr(HostConf, "dtype_on", lambda self, _: "bfloat16" if self.dtype == "auto" else self.dtype)
    told = "host was float32 .* is bfloat16 here .*resume=changed, with host.dtype=float32"
    with pytest.raises(InputError, match=told):
        run(conf_of(inputs, unfinished(tmp_path), "host.dtype=auto"))
    run(conf_of(inputs, tmp_path, "host.dtype=float32", "optimizer.epochs=0.8", "resume=changed"))
    run(conf_of(inputs, tmp_path, "host.dtype=auto", "optimizer.epochs=1", "resume=changed"))
    run(conf_of(inputs, unfinished(tmp_path), "host.dtype=auto", "optimizer.epochs=1"))  # this is its type now


def test_a_host_of_the_same_shape_with_other_weights_is_refused_and_let_through(inputs, runs, tmp_path):
    moved = tmp_path / "moved" / "host"
    shutil.copytree(inputs / "host", moved)
    asked = ("evaluate=[scienceqa]", f"host.path={moved}")
    run(conf_of(inputs, unfinished(runs), *asked))  # the same weights elsewhere
    tensors = load_file(moved / "model.safetensors")
    save_file({name: one * 1.01 for name, one in tensors.items()}, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"a host with other weights .weights_digest .*resume=changed"):
        run(conf_of(inputs, unfinished(runs), *asked))
    run(conf_of(inputs, runs, *asked, "resume=changed", "optimizer.epochs=0.8"))


def test_the_type_of_the_host_is_that_of_its_weights(inputs):
    for asked in ("auto", "float32", "bfloat16"):
        conf = tiny_conf(inputs, inputs, f"host.dtype={asked}")
        weights = next(built(conf, device_of(conf.engine.device)).host.parameters())
        assert str(weights.dtype) == f"torch.{conf.host.dtype_on('cpu')}"


def test_shapes_that_do_not_fit_are_refused_and_settings_results_and_checkpoints_stay(inputs, runs):
    folder = runs / "mine"
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"does not fit this adapter: .*prompt is \(10, 32\) there, \(6, 32\) here"):
        run(conf_of(inputs, runs, "resume=changed", "adapter.prompts.length=6", "evaluate=[scienceqa]"))
    changed = [path.name for path in kept if path.read_bytes() != kept[path]]
    assert changed in ([], ["attempt.json"])


def test_changed_needs_the_name_of_a_run(inputs, runs):
    conf = conf_of(inputs, runs, "resume=changed")
    conf.run = None
    with pytest.raises(InputError, match=r"resume=changed .*run=NAME"):
        run(conf)


def test_another_engine_or_number_of_processes_is_no_change(inputs, runs):
    from mmadapter.runs.folder import changed_settings

    conf = conf_of(inputs, runs, "evaluate=[scienceqa]", "engine.name=zero2", "launch.processes=2")
    assert changed_settings(runs / "mine", conf) == []


def test_a_comparison_of_other_settings_is_trained_on_too(inputs, tmp_path):
    def conf(*overrides):
        whole = tiny_conf(inputs, tmp_path, "run=mine", "evaluate=[]", *overrides)
        whole.comparison = {"text_only": whole.comparison["text_only"]}
        return whole

    run(conf("optimizer.epochs=0.5"))
    run(conf("optimizer.epochs=0.8", "resume=changed"))
    assert len(losses(tmp_path / "mine" / "comparison" / "text_only")) == 3


def test_a_run_goes_on_after_the_adapter_it_started_from_is_gone(inputs, runs, tmp_path):
    """checkpoints/start.safetensors has all that is needed of it."""
    start = tmp_path / "earlier"
    shutil.copytree(runs / "mine" / "adapter", start)
    later = ("seed=3", f"adapter.start={start}")

    def conf(name):
        found = conf_of(inputs, runs, *later)
        found.run = name
        return found

    run(conf("undisturbed"))
    run(conf("resumed"))
    folder = runs / "resumed"
    (folder / "finished.json").unlink()
    shutil.rmtree(start)
    validate(conf("resumed"))
    run(conf("resumed"))
    assert losses(folder) == losses(runs / "undisturbed")
    assert_same_adapter(folder, runs / "undisturbed")
    with pytest.raises(InputError, match=r"adapter.start=.*: there is no adapter.json"):
        run(conf("third"))
