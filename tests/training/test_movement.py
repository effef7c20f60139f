"""Law 3 through the engine: exactly the declared parameters move, on several hosts, with everything switched on."""

import pytest
import torch

from mmadapter.adapters.roles import GroupSettings, parameter_groups
from mmadapter.assistant import GenerationSettings
from mmadapter.training.engine import SingleDeviceEngine
from mmadapter.training.optimizer import OptimizerSettings
from tests.assistants import assistant_on, batch_of, picture, sample
from tests.families import CORE

ONE_GROUP = {"all": GroupSettings(["prompt", "gate", "visual_projection"])}


def make_engine(assistant, groups=ONE_GROUP):
    built = parameter_groups(assistant.trainable(), groups)
    settings = OptimizerSettings(weight_decay=0.1, clip_norm=0.5)
    return SingleDeviceEngine(assistant, built, assistant.trainable(), settings)


def batches(assistant, folder):
    """Two micro-batches: one with a picture in one row, one without any."""
    pictured = [
        sample("what colour is the circle", "red", picture(folder, 1), id="1"),
        sample("what is the square", "blue small", id="2"),
    ]
    plain = [sample("circle and square to the left", "a", id="3"), sample("what", "green .", id="4")]
    return [batch_of(assistant, pictured), batch_of(assistant, plain)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CORE)
def test_exactly_the_declared_parameters_move(name, checkpointing, tmp_path):
    assistant = assistant_on(name, gates=0.0, activation_checkpointing=checkpointing)
    before = {key: value.clone() for key, value in assistant.state_dict().items()}
    engine, parts = make_engine(assistant), batches(assistant, tmp_path)
    for _ in range(3):
        assistant.train()
        engine.step(parts, 1e-2)
        assistant.eval()
        engine.loss_sum(parts[0])
        assistant.generate([sample("what is the circle")], GenerationSettings(max_new_tokens=2))
    after = assistant.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {f"adapter.{name}" for name in engine.parameters}


@pytest.mark.parametrize("name", CORE)
def test_loss_and_step_do_not_depend_on_the_split(name, tmp_path):
    whole, parts = assistant_on(name), assistant_on(name)
    rows = [
        sample(f"what is the circle {'and square ' * n}", "red small"[: 3 + 6 * (n % 2)], id=str(n)) for n in range(4)
    ]
    one = make_engine(whole).step([batch_of(whole, rows)], 1e-2)
    many = make_engine(parts).step([batch_of(parts, rows[:1]), batch_of(parts, rows[1:])], 1e-2)
    assert many.loss == pytest.approx(one.loss, rel=1e-5)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_a_step_without_any_picture_still_moves_its_group_as_one(tmp_path):
    assistant = assistant_on()
    engine = make_engine(assistant)
    engine.step(batches(assistant, tmp_path)[1:], 1e-2)
    assert set(engine.state_dict().steps.values()) == {1}


def test_disjoint_sources_through_a_real_host(tmp_path):
    """Captions move the projection only; without them it stays to the bit, decay and momentum included."""
    groups = {
        "visual": GroupSettings(["visual_projection"], sources=["captions"]),
        "instruction": GroupSettings(["prompt", "gate"], sources=["s"]),
    }
    assistant = assistant_on()
    engine = make_engine(assistant, groups)
    captions = batch_of(assistant, [sample("what is the circle", "red", picture(tmp_path, 1), source="captions")])
    plain = batches(assistant, tmp_path)[1]
    engine.step([captions, plain], 1e-2)
    before = {name: parameter.detach().clone() for name, parameter in engine.parameters.items()}
    engine.step([plain], 1e-2)
    moved = {name for name, parameter in engine.parameters.items() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if not name.startswith("visual_projection")}
