"""What must hold for a run whose host is shared out, from loading to the saved adapter; see test_sharded_run.py."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

import mmadapter
from mmadapter.data.batches import make_batch
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.templates import scienceqa_answer, scienceqa_answer_segments
from mmadapter.data.tokens import SampleEncoder
from mmadapter.distributed.deepspeed import end_engines, held_bytes, whole_size
from mmadapter.hosts.settings import GenerationConf
from mmadapter.hosts.sharded import gather_in_forward
from mmadapter.model import AdaptedModel
from mmadapter.tasks.asking import generate_answers, most_likely_options
from mmadapter.training.run import groups_of
from mmadapter.training.settings import ENGINES
from tests.distributed.several import here
from tests.models import built, picture
from tests.test_load import PRESETS, conf_of

RUNS = (("v2, released", "zero3"), ("v1", "zero3_offload"))
PROMPTS = ["what colour is the circle", "a", "on the right and on the left a large square"]


def samples_of(folder: Path) -> list[Sample]:
    """Three questions of different lengths; the first process gets the only picture."""
    own = folder / f"pictures-{here().rank}"
    own.mkdir(exist_ok=True)
    image = picture(own, 1)
    return [
        Sample(
            id=str(number),
            source="s",
            segments=(Segment(prompt, "instruction"), Segment(" red" * (number + 1), "answer")),
            image=image if number == 0 else None,
            where=f"test {number}",
            meta={"choices": ["red", "blue"]},
        )
        for number, prompt in enumerate(PROMPTS)
    ]


def opened(conf) -> AdaptedModel:
    """The model of the settings, its host shared out, every trained tensor away from where it starts."""
    model = built(conf, sharded=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for item in model.trainable_parameters():
            item.parameter.add_(torch.randn(item.parameter.shape, generator=generator), alpha=0.3)
    return model


def answers(model, samples: list[Sample]) -> tuple[list[str], list[int]]:
    generation = GenerationConf(max_new_tokens=4)
    task = SimpleNamespace(name="test", generation=generation, batch_size=1, seed=3)
    questions = [sample.without_answer() for sample in samples]
    options = [[scienceqa_answer_segments(scienceqa_answer(choice)) for choice in range(2)]] * len(questions)
    return generate_answers(model, questions, task, here()), most_likely_options(
        model, questions, options, task, here()
    )


def trained(conf, samples: list[Sample], asked_after: int | None):
    """Four steps; the model, what each step gave, and what it answered between two of them and at the end."""
    model = opened(conf)
    build = ENGINES.load(conf.engine.name)
    engine = build(model, groups_of(conf, model), conf.optimizer, conf.seed, conf.engine, here())
    encoder = SampleEncoder(model.tokenizer, model.max_tokens)
    mine = [encoder.encode(sample) for sample in samples][here().rank :: here().world_size]
    batch = dataclasses.replace(make_batch(mine, model.tokenizer.pad_token_id), visual=True)
    batch = batch.with_features(model.features)
    results, said = [], []
    model.train()
    for step in range(4):
        if step == asked_after:
            model.eval()
            said.append(answers(model, samples))
            model.train()
        results.append(engine.step([batch], 1e-2))
    model.eval()
    said.append(answers(model, samples))
    return model, engine, results, said


def check_run(folder: Path, preset: str, name: str) -> None:
    conf = conf_of(folder / "models", *PRESETS[preset], f"engine={name}")
    samples = samples_of(folder)
    plain_host = built(conf).host
    whole_bytes = held_bytes(p for p in plain_host.parameters() if p.ndim > 1 and not p.requires_grad)
    model, engine, results, (said,) = trained(conf, samples, None)
    frozen = [p for p in model.host.parameters() if not p.requires_grad and len(p.ds_shape) > 1]
    assert 4 * sum(map(whole_size, frozen)) == whole_bytes
    if here().world_size > 1:
        assert held_bytes(frozen) < 0.8 * whole_bytes, "the frozen base is not shared out"
    again, other_engine, other_results, said_twice = trained(conf, samples, 2)
    assert results == other_results, "answering in between has changed the losses"
    state, other = engine.state_dict(), other_engine.state_dict()
    assert all(torch.equal(state.parameters[key], other.parameters[key]) for key in state.parameters)
    assert said_twice[1] == said
    del engine, again, other_engine, state, other
    gc.collect()  # a run evaluates when its training is over: the weights must still be gathered
    check_saved(folder / preset / name, conf, model, samples, said)


def check_saved(folder: Path, conf, model: AdaptedModel, samples: list[Sample], said) -> None:
    """What the first process saves is whole, and a plain process that opens it is the same model."""
    if here().is_first:
        model.save(folder / "adapter")
    here().barrier()
    plain = mmadapter.load(folder / "adapter", host=conf.host.path, vision=conf.vision.model, device="cpu")
    ours = {item.name: item.parameter for item in model.trainable_parameters()}
    theirs = {item.name: item.parameter for item in plain.trainable_parameters()}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    encoder = SampleEncoder(plain.tokenizer, plain.max_tokens)
    batch = make_batch([encoder.encode(sample) for sample in samples], plain.tokenizer.pad_token_id).with_features(
        plain.features
    )
    with torch.no_grad():
        assert torch.equal(model.log_likelihood(batch), plain.log_likelihood(batch))
    assert answers(plain, samples) == said


def check_host_alone(folder: Path) -> None:
    """A comparison arm that is not trained: no engine is built, the shared host answers all the same."""
    conf = conf_of(folder / "models", *PRESETS["v2"], "engine=zero3")
    plain, shared = built(conf), built(conf, sharded=True)
    gather_in_forward(shared.host)
    assert shared.host_size == plain.host_size == sum(map(whole_size, shared.host.parameters()))
    assert answers(shared, samples_of(folder)) == answers(plain, samples_of(folder))


def check_nothing_is_left(folder: Path) -> None:
    """Arms of one run follow each other in one process: DeepSpeed keeps the modules, but no numbers of them."""
    conf = conf_of(folder / "models", *PRESETS["v1"], "engine=zero3")
    samples, left = samples_of(folder), []
    for _ in range(2):
        model, engine, *_ = trained(conf, samples, None)
        held = held_bytes(model.host.parameters())
        del model, engine
        end_engines()
        left.append(bytes_of_all_tensors())
    assert left[1] - left[0] < 0.01 * held, (left, held)


def bytes_of_all_tensors() -> int:
    """Bytes of every tensor that is alive in this process, shared storage counted once."""
    with warnings.catch_warnings(action="ignore"):  # asking all objects what they are wakes old names in torch
        storages = [item.untyped_storage() for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def checks(folder: Path) -> dict:
    found: dict = {f"{preset} {engine}": partial(check_run, folder, preset, engine) for preset, engine in RUNS}
    return found | {
        "host alone": partial(check_host_alone, folder),
        "nothing is left": partial(check_nothing_is_left, folder),
    }
