"""Checkpoints appear whole or not at all, and give back what was put in."""

import errno
import hashlib
import json
import resource

import pytest
import torch

from mmadapter import files
from mmadapter.errors import InputError
from mmadapter.training.checkpoint import CheckpointFolder, Position, Snapshot, read_snapshot
from mmadapter.training.determinism import random_state, restore_random_state
from mmadapter.training.engine import EngineState
from tests.distributed.several import in_own_process
from tests.training.toy import run_toy


def snapshot_at(step, best=None):
    torch.manual_seed(step)
    values = {"layer.prompt": torch.randn(3, 4), "layer.gate": torch.randn(2)}
    moments = {kind: {"layer.prompt": torch.randn(3, 4)} for kind in ("exp_avg", "exp_avg_sq")}
    tensors, numbers = random_state()
    position = Position(step=step, seconds=1.25, best_step=best, best_loss=None if best is None else 0.5)
    return Snapshot(position, EngineState(values, moments, {"layer.prompt": step}), tensors, numbers)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    saved = snapshot_at(7, best=7)
    CheckpointFolder(tmp_path).save(saved)
    loaded, messages = CheckpointFolder(tmp_path).load_newest()
    assert messages == [] and loaded.position == saved.position and loaded.engine.steps == saved.engine.steps
    for kind, by_name in {"value": saved.engine.parameters, **saved.engine.moments}.items():
        back = loaded.engine.parameters if kind == "value" else loaded.engine.moments[kind]
        assert by_name.keys() == back.keys() and all(torch.equal(by_name[name], back[name]) for name in by_name)


def test_the_last_ones_and_the_best_stay(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in range(1, 7):
        folder.save(snapshot_at(step, best=2 if step > 1 else 1))
    assert [path.name for path in folder.steps()] == ["step-000002", "step-000005", "step-000006"]
    assert json.loads((tmp_path / "last.json").read_text())["folder"] == "step-000006"
    assert json.loads((tmp_path / "best.json").read_text())["folder"] == "step-000002"
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("file", ["trainable.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, file, how):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot_at(4)), folder.save(snapshot_at(8))
    victim = tmp_path / "step-000008" / file
    if how == "flipped":
        damage(victim)
    elif how == "cut":
        victim.write_bytes(victim.read_bytes()[:-9])
    else:
        victim.unlink()
    loaded, messages = folder.load_newest()
    assert loaded.position.step == 4
    assert len(messages) == 1 and "step-000008 is damaged" in messages[0]
    assert (tmp_path / "damaged-step-000008").is_dir()
    assert json.loads((tmp_path / "last.json").read_text())["folder"] == "step-000004"
    folder.save(snapshot_at(8))
    assert folder.load_newest()[0].position.step == 8


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot_at(4))
    damage(tmp_path / "step-000004" / "trainable.safetensors")
    with pytest.raises(InputError, match=r"No checkpoint can be read(.|\n)*Delete"):
        folder.load_newest()


def rewritten(folder, **entries):
    """The state file with other entries in its position, and the digest that belongs to it."""
    file = folder / "state.json"
    content = json.loads(json.loads(file.read_text())["body"])
    content["position"] = {name: one for name, one in (content["position"] | entries).items() if one != "left out"}
    body = json.dumps(content)
    file.write_text(json.dumps({"digest": hashlib.sha256(body.encode()).hexdigest(), "body": body}))


@pytest.mark.parametrize("entries", [{"warmth": 0.5}, {"host_dtype": "left out"}])
def test_a_checkpoint_of_another_version_is_refused_and_stays(tmp_path, entries):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot_at(4)), folder.save(snapshot_at(8))
    rewritten(tmp_path / "step-000008", **entries)
    before = names(tmp_path)
    with pytest.raises(InputError, match=rf"step-000008 was written by another version .* {[*entries][0]}\. Nothing"):
        folder.load_newest()
    assert names(tmp_path) == before


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert CheckpointFolder(tmp_path / "none").load_newest() == (None, [])


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot_at(4))
    half = tmp_path / ".writing-step-000008"
    half.mkdir()
    (half / "state.json").write_text("{")
    assert folder.load_newest()[0].position.step == 4
    assert not half.exists()


@pytest.mark.parametrize("failing", range(5))
def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_half_written(tmp_path, monkeypatch, failing):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(snapshot_at(4))
    original, calls = files.write_durably, []

    def full(path, content):
        calls.append(path)
        if len(calls) == failing + 1:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, content)

    monkeypatch.setattr(files, "write_durably", full)
    with pytest.raises(InputError, match=r"No room to save a checkpoint in .*step-00000\d is intact"):
        folder.save(snapshot_at(8))
    monkeypatch.undo()
    loaded, messages = CheckpointFolder(tmp_path).load_newest()
    assert messages == [] and loaded.position.step == (4 if failing < 4 else 8)
    for path in folder.steps():
        read_snapshot(path)


def test_a_real_limit_on_file_size_gives_one_clear_message(tmp_path):
    """RLIMIT_FSIZE is the nearest thing to a full disk that needs no mount."""

    def run_in_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        run_toy(tmp_path / "run", tensorboard=False)

    process = in_own_process(run_in_little_room, output=tmp_path / "output")
    process.join(60)
    assert process.exitcode == 1
    assert "InputError: No room to save a checkpoint" in (tmp_path / "output").read_text()
    assert names(tmp_path / "run" / "checkpoints") == ["start.safetensors"]  # whole: it had room


def test_random_states_come_back(tmp_path):
    import random

    import numpy

    state = random_state()
    drawn = torch.rand(3), random.random(), numpy.random.rand()
    torch.rand(5), random.gauss(0, 1), numpy.random.rand(4)
    restore_random_state(state[0], json.loads(json.dumps(state[1])))
    again = torch.rand(3), random.random(), numpy.random.rand()
    assert torch.equal(drawn[0], again[0]) and drawn[1:] == again[1:]


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
    """On a shared disk EIO comes and goes: an intact checkpoint must not be set aside for it."""
    folder = CheckpointFolder(tmp_path)
    for step in (2, 4):
        folder.save(snapshot_at(step))

    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mmadapter.training.checkpoint.read_snapshot", broken)
    with pytest.raises(InputError, match="step-000004 cannot be read now .Input/output error"):
        folder.load_newest()
    monkeypatch.undo()
    snapshot, messages = folder.load_newest()
    assert snapshot is not None and snapshot.position.step == 4 and messages == []
