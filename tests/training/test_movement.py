"""Through the engine exactly the declared parameters move, on several hosts, with everything switched on."""

from dataclasses import replace

import pytest
import torch

from mmadapter.hosts.settings import GenerationConf
from mmadapter.methods.groups import parameter_groups
from mmadapter.methods.settings import GroupConf
from mmadapter.training.engine import SingleDeviceEngine
from mmadapter.training.settings import OptimizerConf
from tests.families import CORE
from tests.models import BOTH_METHODS, batch_of, model_on, picture, sample

VISUAL = ["visual_projection", "early_gate"]
INSTRUCTION = ["prompt", "gate", "norm", "bias", "scale", "lora"]
ONE_GROUP = {"all": GroupConf([*VISUAL, *INSTRUCTION])}


def make_engine(model, groups=ONE_GROUP):
    """Everything switched on; of the groups' roles those that the model has."""
    present = {item.role for item in model.trainable_parameters()}
    own = {name: replace(one, roles=[role for role in one.roles if role in present]) for name, one in groups.items()}
    built = parameter_groups(model.trainable_parameters(), own)
    settings = OptimizerConf(weight_decay=0.1, clip_norm=0.5)
    return SingleDeviceEngine(model, built, settings)


def batches(model, folder):
    """Two micro-batches: one with a picture in one row, one without any."""
    pictured = [
        sample("what colour is the circle", "red", picture(folder, 1), id="1"),
        sample("what is the square", "blue small", id="2"),
    ]
    plain = [sample("circle and square to the left", "a", id="3"), sample("what", "green .", id="4")]
    return [batch_of(model, pictured), batch_of(model, plain)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", BOTH_METHODS)
def test_exactly_the_declared_parameters_move(name, checkpointing, tmp_path):
    model = model_on(name, gates=0.0, activation_checkpointing=checkpointing)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    engine, parts = make_engine(model), batches(model, tmp_path)
    for _ in range(3):
        model.train()
        engine.step(parts, 1e-2)
        model.eval()
        engine.loss_sum(parts[0])
        model.answer([sample("what is the circle")], GenerationConf(max_new_tokens=2))
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    declared = {parameter.data_ptr() for parameter in engine.parameters.values()}  # LoRA's are in the host, too
    assert moved == {key for key, value in after.items() if value.data_ptr() in declared}


@pytest.mark.parametrize("name", CORE)
def test_loss_and_step_do_not_depend_on_the_split(name, tmp_path):
    whole, parts = model_on(name), model_on(name)
    rows = [
        sample(f"what is the circle {'and square ' * n}", "red small"[: 3 + 6 * (n % 2)], id=str(n)) for n in range(4)
    ]
    one = make_engine(whole).step([batch_of(whole, rows)], 1e-2)
    many = make_engine(parts).step([batch_of(parts, rows[:1]), batch_of(parts, rows[1:])], 1e-2)
    assert many.loss == pytest.approx(one.loss, rel=1e-5)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_a_step_without_any_picture_still_moves_its_group_as_one(tmp_path):
    model = model_on()
    engine = make_engine(model)
    engine.step(batches(model, tmp_path)[1:], 1e-2)
    assert set(engine.state_dict().steps.values()) == {1}


DISJOINT = {
    "visual": GroupConf(VISUAL, sources=["captions"]),
    "instruction": GroupConf(INSTRUCTION, sources=["s"]),
}


def joint_step(model, folder, number):
    """Two micro-batches of captions with other pictures each step, two of instructions."""
    captions = [
        batch_of(
            model,
            [sample("what is the circle", answer, picture(folder, seed + 2 * number), source="captions")],
        )
        for seed, answer in enumerate(("red", "blue square"))
    ]
    instructions = [
        batch_of(model, [sample("circle and square to the left", "a"), sample("what", "green .", id=str(number))]),
        batch_of(model, [sample("what is the square", "small blue")]),
    ]
    return captions, instructions


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", BOTH_METHODS)
def test_captions_leave_the_instruction_group_as_an_instruction_only_run_has_it(name, checkpointing, tmp_path):
    """To the bit, on a real host: parameters, moments, step counts; a generate and a loss with a picture in between."""
    joint, alone = (model_on(name, activation_checkpointing=checkpointing) for _ in range(2))
    engines = make_engine(joint, DISJOINT), make_engine(alone, DISJOINT)
    start = engines[0].state_dict()
    for number in range(3):
        captions, instructions = joint_step(joint, tmp_path, number)
        steps = ([*captions, *instructions], instructions)
        for model, engine, parts in zip((joint, alone), engines, steps, strict=True):
            model.train()
            engine.step(parts, 1e-2)
        joint.eval()
        engines[0].loss_sum(captions[0])
        joint.answer([sample("what is the circle", image=picture(tmp_path, 9))], GenerationConf(max_new_tokens=2))
    one, other = (engine.state_dict() for engine in engines)
    instruction = [item.name for item in joint.trainable_parameters() if item.role in INSTRUCTION]
    for name in start.parameters:
        same = torch.equal(one.parameters[name], other.parameters[name])
        assert same == (name in instruction), name
        if name in instruction:
            assert one.steps[name] == other.steps[name] == 3
            assert all(torch.equal(one.moments[kind][name], other.moments[kind][name]) for kind in one.moments)
            assert not torch.equal(one.parameters[name], start.parameters[name])
        else:
            assert torch.equal(other.parameters[name], start.parameters[name]) and name not in other.steps


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama_gqa", "v2 llama_gqa"])
def test_each_groups_gradient_is_that_of_its_own_sources_loss(name, checkpointing, tmp_path):
    """What AdamW gets, against torch.autograd.grad of one source's loss over one group's parameters."""
    model = model_on(name, activation_checkpointing=checkpointing)
    engine = make_engine(model, DISJOINT)
    engine.settings = OptimizerConf()  # no clipping
    captions, instructions = joint_step(model, tmp_path, 0)
    seen = {}
    engine.optimizer.step = lambda: seen.update({n: p.grad.clone() for n, p in engine.parameters.items()})
    model.train()
    engine.step([*captions, *instructions], 1e-2)
    for group, batches_of_group in zip(engine.groups, (captions, instructions), strict=True):
        parameters = [parameter for _, parameter in group.parameters]
        loss = sum(model(batch) for batch in batches_of_group)
        loss = loss / sum(batch.supervised_tokens for batch in batches_of_group)
        for (name, _), gradient in zip(group.parameters, torch.autograd.grad(loss, parameters), strict=True):
            torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-7)
