"""One optimizer step: how losses are averaged, what moves, what does not."""

import math

import pytest
import torch

from mmadapter.data.batches import make_batch
from mmadapter.errors import InputError
from mmadapter.methods.groups import parameter_groups
from mmadapter.methods.settings import GroupConf
from mmadapter.training.engine import SingleDeviceEngine
from mmadapter.training.optimizer import check_sources
from mmadapter.training.settings import OptimizerConf
from tests.training.toy import ToyModel, toy_sample

EVERYTHING = {"all": GroupConf(["prompt", "gate", "visual_projection"])}
DISJOINT = {
    "visual": GroupConf(["visual_projection"], sources=["captions"]),
    "instruction": GroupConf(["prompt", "gate"], sources=["questions"]),
}


def make_engine(groups=EVERYTHING, **settings):
    model = ToyModel()
    built = parameter_groups(model.trainable_parameters(), groups)
    return SingleDeviceEngine(model, built, OptimizerConf(**settings))


def batch_of(numbers, source="questions", **keywords):
    return make_batch([toy_sample(source, number, **keywords) for number in numbers], 0)


def snapshot(engine):
    state = engine.state_dict()
    tensors = {f"value {name}": tensor for name, tensor in state.parameters.items()}
    tensors |= {f"{kind} {name}": t for kind, named in state.moments.items() for name, t in named.items()}
    return tensors | {f"steps {name}": torch.tensor(count) for name, count in state.steps.items()}


def changed(before, after):
    return sorted(name for name in before.keys() | after.keys() if not same(before.get(name), after.get(name)))


def same(one, other):
    return one is not None and other is not None and torch.equal(one, other)


@pytest.mark.parametrize("split", [[8], [4, 4], [1, 2, 5], [1] * 8])
def test_loss_and_step_do_not_depend_on_how_the_batch_was_split(split):
    whole, parts = make_engine(clip_norm=0.1), make_engine(clip_norm=0.1)
    numbers = list(range(8))
    pieces = [batch_of(numbers[sum(split[:i]) : sum(split[: i + 1])]) for i in range(len(split))]
    for _ in range(3):
        expected, result = whole.step([batch_of(numbers)], 1e-2), parts.step(pieces, 1e-2)
        assert result.loss == pytest.approx(expected.loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    for name, value in snapshot(whole).items():
        torch.testing.assert_close(snapshot(parts)[name], value, rtol=2e-5, atol=1e-6)


def test_loss_is_the_average_over_supervised_tokens_not_over_samples():
    engine = make_engine()
    long, short = batch_of([0], supervised=3), batch_of([1], supervised=1)
    sums = engine.loss_sum(long), engine.loss_sum(short)
    assert engine.step([long, short], 0.0).loss == pytest.approx(sum(sums) / 4)


def test_three_steps_equal_adamw_written_out():
    engine, twin = make_engine(weight_decay=0.1), ToyModel()
    items = {item.name: item for item in twin.trainable_parameters()}
    moments = {
        name: [torch.zeros_like(item.parameter), torch.zeros_like(item.parameter)] for name, item in items.items()
    }
    for step, lr in enumerate([1e-2, 5e-3, 2e-2], 1):
        batch = batch_of(range(step, step + 4))
        engine.step([batch], lr)
        gradients = torch.autograd.grad(twin(batch) / batch.supervised_tokens, [i.parameter for i in items.values()])
        with torch.no_grad():
            for (name, item), gradient in zip(items.items(), gradients, strict=True):
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.95).add_(0.05 * gradient**2)
                decay = 0.1 if item.role in ("prompt", "gate") or item.parameter.ndim > 1 else 0.0
                item.parameter.mul_(1 - lr * decay)
                corrected = (second / (1 - 0.95**step)).sqrt() + 1e-8
                item.parameter.sub_(lr * (first / (1 - 0.9**step)) / corrected)
    for name, item in items.items():
        torch.testing.assert_close(engine.parameters[name].detach(), item.parameter.detach(), rtol=1e-5, atol=1e-7)


def test_decay_falls_on_gates_prompts_and_matrices_but_not_on_biases():
    engine = make_engine(weight_decay=0.3)
    decay = {id(p): entry["weight_decay"] for entry in engine.optimizer.param_groups for p in entry["params"]}
    by_name = {name: decay[id(parameter)] for name, parameter in engine.parameters.items()}
    assert by_name == {
        "layer.prompt": 0.3,
        "layer.gate": 0.3,
        "visual_projection.weight": 0.3,
        "visual_projection.bias": 0.0,
    }


def test_a_group_may_have_its_own_decay_and_rate():
    groups = {
        "slow": GroupConf(["prompt"], lr_scale=0.1, weight_decay=0.0),
        "rest": GroupConf(["gate", "visual_projection"]),
    }
    engine = make_engine(groups, weight_decay=0.3)
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    engine.step([batch_of(range(4))], 1e-2)
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in engine.parameters.items()}
    assert moved["layer.prompt"] == pytest.approx(1e-3, rel=1e-2)  # the first AdamW step is lr, whatever the gradient
    assert moved["layer.gate"] == pytest.approx(1e-2 * (1 + 0.3 * 0.3), rel=2e-2) or moved[
        "layer.gate"
    ] == pytest.approx(1e-2 * (1 - 0.3 * 0.3), rel=2e-2)


def test_exactly_the_trainable_parameters_move():
    engine = make_engine()
    model = engine.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        engine.step([batch_of(range(6))], 1e-2)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"adapter.{name}" for name in engine.parameters}


def test_a_step_without_a_supervised_token_has_loss_zero_and_moves_nothing():
    engine = make_engine(weight_decay=0.5)
    engine.step([batch_of(range(4))], 1e-2)
    before = snapshot(engine)
    result = engine.step([batch_of(range(3), supervised=0)], 1e-2)
    assert result.loss == 0.0 and result.loss_by_source == {"questions": 0.0} and result.supervised_tokens == 0
    assert changed(before, snapshot(engine)) == []


def test_a_batch_that_reaches_no_trainable_part_has_a_loss_and_no_gradient():
    """A text-only batch of an adapter that has parts for pictures only."""
    engine = make_engine()
    engine.step([batch_of(range(4))], 1e-2)
    model = engine.model
    engine.model = lambda batch: model(batch).detach()
    result = engine.step([batch_of(range(4))], 1e-2)
    assert result.loss > 0 and result.grad_norm == 0 and not result.skipped_groups


def test_clipping_is_per_group():
    limit = 1e-3
    engine, free = make_engine(DISJOINT, clip_norm=limit), make_engine(DISJOINT)
    seen = {}
    engine.optimizer.step = lambda: seen.update({n: p.grad.clone() for n, p in engine.parameters.items()})
    free.optimizer.step = lambda: seen.update({f"free {n}": p.grad.clone() for n, p in free.parameters.items()})
    batches = [batch_of(range(4)), batch_of([1, 3], "captions")]
    engine.step(batches, 1e-2)
    norms = free.step(batches, 1e-2).grad_norms
    for group in engine.groups:
        assert norms[group.name] > limit
        for name, _ in group.parameters:
            torch.testing.assert_close(seen[name], seen[f"free {name}"] * (limit / norms[group.name]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_step_leaves_parameters_and_moments_bit_identical(bad):
    engine = make_engine(clip_norm=1.0)
    engine.step([batch_of(range(4))], 1e-2)
    before, forward = snapshot(engine), engine.model.forward
    engine.model.forward = lambda batch: forward(batch) * bad
    result = engine.step([batch_of(range(4)), batch_of(range(4, 8))], 1e-2)
    assert result.skipped_groups == ("all",)
    assert changed(before, snapshot(engine)) == []
    engine.model.forward = forward
    assert engine.step([batch_of(range(4))], 1e-2).skipped_groups == ()
    assert changed(before, snapshot(engine)) != []


def test_a_non_finite_gradient_under_a_finite_loss_is_skipped_too():
    engine = make_engine()
    forward, gate = engine.model.forward, engine.model.adapter.layer.gate
    engine.model.forward = lambda batch: forward(batch) + (gate.sum() * 0.0).sqrt()  # value 0, gradient 0 x infinity
    before = snapshot(engine)
    result = engine.step([batch_of(range(4))], 1e-2)
    assert math.isfinite(result.loss) and result.skipped_groups == ("all",)
    assert changed(before, snapshot(engine)) == []


def test_a_source_moves_only_its_groups_to_the_bit():
    """Joint training of disjoint groups: the instruction group equals that of a run without captions."""
    joint, alone = make_engine(DISJOINT, clip_norm=0.5), make_engine(DISJOINT, clip_norm=0.5)
    for step in range(4):
        questions, more = batch_of(range(2 * step, 2 * step + 8, 2)), batch_of([2 * step])  # even: without a picture
        joint.step([questions, batch_of([1, 3], "captions"), more], 1e-2)
        alone.step([questions, more], 1e-2)
    start, one, other = snapshot(make_engine(DISJOINT)), snapshot(joint), snapshot(alone)
    instruction = [name for name in one if "layer." in name]
    assert [name for name in instruction if not torch.equal(one[name], other[name])] == []
    visual = [name for name in start if "visual" in name]
    assert [name for name in visual if not torch.equal(start[name], other[name])] == []
    assert all(not torch.equal(start[name], one[name]) for name in visual)


def test_a_non_finite_source_skips_only_its_groups():
    engine = make_engine(DISJOINT)
    forward = engine.model.forward
    engine.model.forward = lambda batch: forward(batch) * (math.nan if batch.source == "captions" else 1.0)
    before = snapshot(engine)
    result = engine.step([batch_of(range(4)), batch_of([1], "captions")], 1e-2)
    assert result.skipped_groups == ("visual",)
    assert {name.split(" ")[1].split(".")[0] for name in changed(before, snapshot(engine))} == {"layer"}


def test_a_group_of_an_unknown_source_is_refused():
    groups = parameter_groups(ToyModel().trainable_parameters(), DISJOINT)
    with pytest.raises(InputError, match=r"adapter.groups.visual.sources names captions.*questions"):
        check_sources(groups, ["questions"])


def test_state_goes_into_a_fresh_engine_and_comes_out_the_same():
    engine, fresh = make_engine(), make_engine()
    for _ in range(2):
        engine.step([batch_of(range(5))], 1e-2)
    fresh.load_state_dict(engine.state_dict())
    assert changed(snapshot(engine), snapshot(fresh)) == []
    engine.step([batch_of(range(3))], 1e-2), fresh.step([batch_of(range(3))], 1e-2)
    assert changed(snapshot(engine), snapshot(fresh)) == []


def test_state_of_another_adapter_is_refused_with_the_tensor_named():
    state = make_engine().state_dict()
    state.parameters["layer.prompt"] = torch.zeros(4, 6)
    with pytest.raises(InputError, match=r"layer.prompt is \(4, 6\) there, \(3, 6\) here"):
        make_engine().load_state_dict(state)
