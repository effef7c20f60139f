"""What a crash or a bad disk leaves of a run folder is mended and said, or refused."""

import errno
import json
import shutil

import pytest
import torch

from mmadapter import files
from mmadapter.errors import InputError
from mmadapter.files import recover_folder, write_json
from mmadapter.runs.attempt import attempt
from mmadapter.runs.journal import read_metrics
from mmadapter.training.checkpoint import CheckpointFolder
from tests.training.test_checkpoint import damage, names, snapshot_at
from tests.training.test_loop import EPOCHS, assert_same_run, curve
from tests.training.toy import run_toy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_toy(folder, EPOCHS)
    return folder


@pytest.fixture
def interrupted(undisturbed, tmp_path):
    """The same run as it stood at step 22, its last checkpoint gone."""
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000024")
    return tmp_path / "run"


@pytest.fixture
def order(monkeypatch):
    """What is written, synced and renamed from here on, in order."""
    calls = []

    def noted(owner, name):
        original = getattr(owner, name)

        def wrapper(*arguments, **keywords):
            calls.append((name, *(getattr(one, "name", None) for one in arguments)))
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, wrapper)

    for name in ("write_durably", "sync"):
        noted(files, name)
    for name in ("rename", "replace"):
        noted(files.Path, name)
    return calls


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_next_step(tmp_path, order):
    files.write_atomically(tmp_path / "new" / "file.json", "content")
    kinds = [call[0] for call in order]
    assert kinds == ["sync", "write_durably", "replace", "sync"]  # of the new folder's name, the file, its name
    assert names(tmp_path / "new") == ["file.json"]


def test_a_checkpoint_is_whole_on_the_disk_before_it_has_its_name(tmp_path, order):
    CheckpointFolder(tmp_path / "run" / "checkpoints").save(snapshot_at(4))
    final = order.index(("rename", ".writing-step-000004", "step-000004"))
    written = [call[1] for call in order[:final] if call[0] == "write_durably"]
    assert sorted(written) == ["optimizer.safetensors", "random.safetensors", "state.json", "trainable.safetensors"]
    assert order[final - 1] == ("sync", ".writing-step-000004") and order[final + 1] == ("sync", "checkpoints")
    assert ("sync", "run") in order[:final], "the name of checkpoints/ itself"


def test_a_power_cut_cannot_leave_an_empty_file_under_a_final_name(tmp_path, order):
    write_json(tmp_path / "finished.json", {"steps": 3})
    kinds = [call[0] for call in order]
    assert kinds.index("write_durably") < kinds.index("replace") < len(kinds) - 1 and kinds[-1] == "sync"


@pytest.mark.parametrize("file", ["state.json", "trainable.safetensors", "optimizer.safetensors"])
def test_a_file_of_zero_bytes_or_a_folder_without_anything_falls_back(tmp_path, file):
    folder = CheckpointFolder(tmp_path)
    for step in (4, 8):
        folder.save(snapshot_at(step))
    (tmp_path / "step-000008" / file).write_bytes(b"")
    (tmp_path / "step-000012").mkdir()
    (tmp_path / "last.json").write_text('{"step": 99, "folder": "step-000099"}')
    loaded, messages = folder.load_newest()
    assert loaded.position.step == 4 and len(messages) == 2
    assert json.loads((tmp_path / "last.json").read_text())["folder"] == "step-000004"
    assert {"damaged-step-000008", "damaged-step-000012"} <= set(names(tmp_path))


def test_all_damaged_is_refused_the_second_time_too(tmp_path):
    """Else the same command, given again, would silently train from the start."""
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot_at(4))
    damage(tmp_path / "step-000004" / "trainable.safetensors")
    for _ in range(2):
        with pytest.raises(InputError, match="No checkpoint can be read"):
            folder.load_newest()


def test_a_folder_that_somebody_put_there_is_left_alone(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot_at(4))
    (tmp_path / "step-000004-copy").mkdir()
    assert folder.load_newest()[0].position.step == 4 and (tmp_path / "step-000004-copy").is_dir()


def test_killed_while_a_step_is_saved_again_keeps_the_earlier_save(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot_at(4))
    original = files.Path.rename

    def killed(path, target):
        if path.name.startswith(".writing-"):
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(files.Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.save(snapshot_at(4))
    monkeypatch.undo()
    assert "step-000004" not in names(tmp_path)
    assert folder.load_newest()[0].position.step == 4
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "flipped"])
def test_a_damaged_start_is_mended_where_the_settings_give_the_same(undisturbed, interrupted, capsys, how):
    file = interrupted / "checkpoints" / "start.safetensors"
    whole = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        file.write_bytes(whole[: 0 if how == "empty" else -9])
    run_toy(interrupted, EPOCHS)
    assert "start.safetensors was" in capsys.readouterr().out and file.read_bytes() == whole
    assert_same_run(interrupted, undisturbed)


def test_a_damaged_start_that_cannot_be_made_again_is_refused(interrupted, monkeypatch):
    from tests.training import toy

    class OtherStart(toy.ToyModel):
        def __init__(self, **keywords):
            super().__init__(seed=5, **keywords)

    before = (interrupted / "metrics.jsonl").read_bytes()
    damage(interrupted / "checkpoints" / "start.safetensors")
    monkeypatch.setattr(toy, "ToyModel", OtherStart)
    with pytest.raises(InputError, match=r"start.safetensors, what the run started from, is .*Put the file back"):
        run_toy(interrupted, EPOCHS)
    assert (interrupted / "metrics.jsonl").read_bytes() == before


def test_a_journal_that_lost_lines_goes_on_and_says_so(undisturbed, interrupted, capsys):
    lines = (interrupted / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (interrupted / "metrics.jsonl").write_bytes(b"".join(lines[:8]))
    run_toy(interrupted, EPOCHS)
    assert "lines of earlier steps are lost" in capsys.readouterr().out
    events = [event["event"] for event in read_metrics(interrupted / "metrics.jsonl", "event")]
    assert "repaired" in events and curve(interrupted)[0][-2:] == curve(undisturbed)[0][-2:]


def test_the_previous_adapter_gets_its_name_back(tmp_path):
    """Killed between the two renames of a save."""
    old, half = tmp_path / ".adapter-old-17", tmp_path / ".adapter-x1"
    for folder in (old, half):
        folder.mkdir()
    (old / "adapter.json").write_text("the previous one")
    recover_folder(tmp_path / "adapter")
    assert names(tmp_path) == ["adapter"] and (tmp_path / "adapter" / "adapter.json").read_text() == "the previous one"
    old.mkdir()
    recover_folder(tmp_path / "adapter")
    assert names(tmp_path) == ["adapter"]


def test_a_lock_whose_file_was_taken_away_does_not_let_two_in(tmp_path, monkeypatch):
    """A second attempt opens the file, the first ends and deletes it, the second locks what has no name any more."""
    import fcntl

    original, ended = fcntl.flock, []

    def flock(file, operation):
        if not ended:
            ended.append((tmp_path / ".running").unlink())
        original(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with attempt(tmp_path, 1), pytest.raises(InputError, match="Another process"), attempt(tmp_path, 1):
        pass


def test_a_file_system_without_locks_can_be_trained_on(tmp_path, monkeypatch):
    import fcntl

    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with attempt(tmp_path, 1):
        pass


def test_torch_keeps_the_bits_of_the_start(undisturbed):
    """The digest in the checkpoints is that of the file."""
    from safetensors.torch import load_file

    from mmadapter.training.movement import digest_of

    start = load_file(undisturbed / "checkpoints" / "start.safetensors")
    snapshot, _ = CheckpointFolder(undisturbed / "checkpoints").load_newest()
    assert snapshot.position.start == digest_of(start)
    start["layer.gate"] = torch.nextafter(start["layer.gate"], torch.tensor(9.0))
    assert snapshot.position.start != digest_of(start)
