"""Joint training of disjoint groups, to the bit: what one source teaches never depends on the others (decision 4)."""

import math
import random
import time

import pytest
import torch

from mmadapter.methods.settings import GroupConf
from mmadapter.runs.journal import Journal, read_metrics
from mmadapter.training.checkpoint import CheckpointFolder
from mmadapter.training.engine import SingleDeviceEngine
from tests.distributed.several import in_own_process
from tests.training.toy import ToyData, ToyModel, toy_conf, train

SHARES = {"captions": 6, "instructions": 5}  # micro-batches of 4: accumulation; 19 and 16 samples: both start again
STEPS = 14


class Toy(ToyModel):
    """With dropout; non-finite on the named forwards of captions in training mode."""

    def __init__(self, bad=()) -> None:
        super().__init__(dropout=0.3)
        self.bad, self.passes = set(bad), 0

    def forward(self, batch):
        loss = super().forward(batch)
        if self.training and batch.source == "captions":
            self.passes += 1
            loss = loss * math.nan if self.passes in self.bad else loss
        return loss


def run_joint(folder, shares=SHARES, frozen=False, model=None, delay=0.0, instruction_rate=1.0, **settings):
    """A run of STEPS steps on disjoint groups; without captions, or frozen, on the instruction group alone."""
    torch.set_num_threads(1)
    conf = toy_conf(**{"validate_every_steps": 4, "save_every_steps": 3, "log_every_steps": 2} | settings)
    instruction = GroupConf(roles=["prompt", "gate"], lr_scale=instruction_rate, sources=["instructions"])
    conf.adapter.groups = {"instruction": instruction}
    if not frozen:
        conf.adapter.groups["visual"] = GroupConf(roles=["visual_projection"], sources=["captions"])
    conf.optimizer.steps, conf.optimizer.warmup_steps, conf.optimizer.clip_norm = STEPS, 2, 0.05
    conf.optimizer.batch_size, conf.optimizer.weight_decay = 32, 0.3  # the rate is the same whatever a step holds

    class Data(ToyData):
        def step_batches(self, step):
            time.sleep(delay)
            return super().step_batches(step)

    model = model or Toy()
    trainable = model.trainable_parameters
    if frozen:  # present, but in no group
        model.trainable_parameters = lambda: [item for item in trainable() if item.role != "visual_projection"]
    journal = Journal(folder)
    try:
        summary = train(conf, model, Data(shares=shares), folder, journal)
    finally:
        journal.close()
    return summary


def state(folder):
    """Parameters, moments and step counts at the end."""
    snapshot, _ = CheckpointFolder(folder / "checkpoints").load_newest()
    engine = snapshot.engine
    named = dict(engine.parameters)
    named |= {f"{kind}/{name}": t for kind, tensors in engine.moments.items() for name, t in tensors.items()}
    return named | {f"steps/{name}": torch.tensor(count) for name, count in engine.steps.items()}


def instruction(folder):
    return {name: tensor for name, tensor in state(folder).items() if "layer." in name}


def visual(folder):
    return {name: tensor for name, tensor in state(folder).items() if "visual_projection" in name}


def differing(one, other):
    assert one and one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def records(folder, kind="train"):
    drop = ("seconds", "tokens_per_s", "memory")
    return [{k: v for k, v in line.items() if k not in drop} for line in read_metrics(folder / "metrics.jsonl", kind)]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    run_joint(folder)
    return folder


def test_the_instruction_group_equals_that_of_an_instruction_only_run(joint, tmp_path):
    """With decay, momentum, clipping, accumulation, dropout, validation in between, both sources starting again."""
    run_joint(tmp_path, shares={"instructions": 5}, frozen=True, validate_every_steps=5)
    assert differing(instruction(joint), instruction(tmp_path)) == []
    joint_losses = [line["loss_by_source"]["instructions"] for line in records(joint)]
    assert joint_losses == [line["loss"] for line in records(tmp_path)]


def test_the_visual_group_does_not_depend_on_how_many_instructions_a_step_holds(joint, tmp_path):
    """The captions pass the prompts, which instructions move: they are held still here by a rate that is next to 0."""
    run_joint(tmp_path / "one", instruction_rate=1e-38)
    run_joint(tmp_path / "two", instruction_rate=1e-38, shares={"captions": 6, "instructions": 2})
    assert differing(visual(tmp_path / "one"), visual(tmp_path / "two")) == []
    assert differing(visual(tmp_path / "one"), visual(joint)) != []


def test_non_finite_captions_skip_the_visual_group_only_and_are_counted(joint, tmp_path, capsys):
    summary = run_joint(tmp_path, model=Toy(bad={3, 8}))  # two passes a step: steps 2 and 4
    assert summary["nonfinite_steps"] == 2 and summary["finished"]
    events = [line for line in records(tmp_path, "event") if line["event"] == "nonfinite_step"]
    assert [(line["step"], line["groups"]) for line in events] == [(2, ["visual"]), (4, ["visual"])]
    assert differing(instruction(joint), instruction(tmp_path)) == []
    counts = {int(count) for name, count in state(tmp_path).items() if name.startswith("steps/visual")}
    assert counts == {STEPS - 2}
    assert "skipped for visual (1 skipped so far" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_a_joint_run_ends_as_if_undisturbed(joint, tmp_path, seed):
    rng, folder = random.Random(seed), tmp_path / "run"
    for _ in range(3):
        wanted = len(read_metrics(folder / "metrics.jsonl", "train")) + rng.randrange(1, 5)
        process = in_own_process(lambda: run_joint(folder, delay=0.02), output=tmp_path / "output")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.is_alive():
            if len(read_metrics(folder / "metrics.jsonl", "train")) >= wanted:
                break
            time.sleep(0.002)
        process.kill()
        process.join()
    run_joint(folder)
    assert differing(state(joint), state(folder)) == []
    assert records(folder) == records(joint)
    assert records(folder, "validation") == records(joint, "validation")


def test_the_journal_tells_loss_by_source_and_movement_by_group(joint):
    lines = records(joint)
    assert all(set(line["loss_by_source"]) == set(SHARES) for line in lines)
    moved = [line["movement"] for line in lines if "movement" in line]
    assert len(moved) == STEPS // 2 + 1 and set(moved[0]) == {"instruction", "visual"}
    assert all("movement" in line for line in records(joint, "validation"))
    start, end = Toy(), state(joint)
    for group in ("instruction", "visual"):
        names = [item.name for item in start.trainable_parameters() if ("visual" in item.name) == (group == "visual")]
        by_name = {item.name: item.parameter.detach() for item in start.trainable_parameters()}
        distance = math.sqrt(sum(float((end[name] - by_name[name]).double().square().sum()) for name in names))
        length = math.sqrt(sum(float(by_name[name].double().square().sum()) for name in names))
        assert moved[-1][group]["distance"] == pytest.approx(distance, rel=1e-12)
        assert moved[-1][group]["relative"] == pytest.approx(distance / length, rel=1e-12)


def test_movement_is_measured_from_the_runs_start_even_where_that_cannot_be_made_again(joint, tmp_path, monkeypatch):
    monkeypatch.setattr(SingleDeviceEngine, "step", stop_after(8, SingleDeviceEngine.step))
    with pytest.raises(KeyboardInterrupt):
        run_joint(tmp_path)
    monkeypatch.undo()
    changed = Toy()
    with torch.no_grad():
        for item in changed.trainable_parameters():
            item.parameter.add_(1.0)
    run_joint(tmp_path, model=changed)
    assert records(tmp_path) == records(joint)


def stop_after(count, original):
    calls = []

    def step(self, batches, lr):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return original(self, batches, lr)

    return step


def test_a_group_that_starts_at_zero_has_no_relative_movement(tmp_path):
    model = Toy()
    with torch.no_grad():
        for parameter in model.adapter.visual_projection.parameters():
            parameter.zero_()
    moved = run_joint(tmp_path, model=model)["movement"]
    assert moved["visual"]["relative"] is None and moved["visual"]["distance"] > 0


def test_the_terminal_shows_losses_by_source_and_movement(tmp_path, capsys):
    run_joint(tmp_path)
    output = capsys.readouterr().out
    last = [line for line in output.splitlines() if line.startswith(f"step {STEPS}/{STEPS}")][0]
    assert "(captions " in last and ", instructions " in last
    validated = [line for line in output.splitlines() if line.startswith("validation at step 4")][0]
    assert "; moved: instruction " in validated and "%), visual " in validated
    assert "moved from the start: instruction " in output
