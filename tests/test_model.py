"""Movement, caches and batches on whole models, with open gates and pictures."""

from dataclasses import replace

import pytest
import torch

from mmadapter.data.batches import make_batch
from mmadapter.data.samples import Sample
from mmadapter.data.tokens import SampleEncoder
from mmadapter.errors import InputError
from mmadapter.hosts.attention import AttentionInputs
from mmadapter.hosts.families import attention_modules
from mmadapter.hosts.settings import GenerationConf, HostConf
from mmadapter.methods import AdapterConf
from mmadapter.model import AdaptedModel
from mmadapter.vision.settings import VisionSettings
from tests.data.prompts import dialog_segments
from tests.models import BOTH_METHODS, V2, batch_of, model_on, picture, sample

QUESTIONS = ["what colour is the circle", "what is on the left of the large red square and to the right", "a circle"]
VISUAL = ("projection", "early_fusion")
ANSWERS = ["red", "a small blue square .", "is blue and green"]


def mixed_samples(folder, answers=True):
    """Three rows of different lengths: with a picture, without, with another picture."""
    images = [picture(folder, 1), None, picture(folder, 2)]
    rows = zip(QUESTIONS, ANSWERS, images, strict=True)
    return [sample(q, a if answers else None, i, id=str(n)) for n, (q, a, i) in enumerate(rows)]


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", [*BOTH_METHODS, "gemma2", "gpt_neox", "phi3", "v2 phi3"])
def test_movement(name, tmp_path):
    """Exactly the declared parameters move, prompts too, after a validation pass and an answer in between."""
    model = model_on(name, gates=0.0)
    samples = mixed_samples(tmp_path)
    batch = batch_of(model, samples)
    frozen = {"host": snapshot(model.host), "tower": snapshot(model.vision)}
    before = snapshot(model.adapter)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-2, weight_decay=0.02)
    model.train()
    for _ in range(3):
        with torch.no_grad():
            model.eval()(batch)
        model.answer(samples, GenerationConf(max_new_tokens=2))
        model.train()
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    for part, module in (("host", model.host), ("tower", model.vision)):
        for key, tensor in module.named_parameters():
            assert torch.equal(tensor, frozen[part][key]), f"the frozen {part} moved: {key}"
            assert tensor.grad is None
    decay_only = {key: tensor * (1 - 1e-2 * 0.02) ** 3 for key, tensor in before.items()}
    for key, tensor in model.adapter.state_dict().items():
        assert not torch.equal(tensor, before[key]), f"{key} never moved"
        assert not torch.allclose(tensor, decay_only[key], rtol=0, atol=1e-6), f"{key} moved by weight decay alone"


@pytest.mark.parametrize("name", BOTH_METHODS)
def test_a_new_prompt_shows_after_evaluation(name, tmp_path):
    """Prompt keys and values that were kept for an answer never outlive the prompt that they were made from."""
    model = model_on(name)
    batch = batch_of(model, mixed_samples(tmp_path))
    with torch.no_grad():
        before = model(batch)
        model.answer(mixed_samples(tmp_path), GenerationConf(max_new_tokens=2))
        for layer in model.adapter["prompts"].values():
            layer.prompt.add_(1.0)
        assert not torch.equal(model(batch), before)


def test_kept_prompts_are_dropped_when_a_prompt_changes_within_one_call():
    model = model_on()
    part, module = model.adapter["prompts"]["2"], attention_modules(model.host)[2]
    query = torch.zeros(1, 4, 1, 8)
    call = model.adapter.call(keep=True)

    def project():
        inputs = AttentionInputs(query, query, query, None, module, {})
        return call.once(part, part.prompt, lambda: part._branch(inputs, None))

    with torch.no_grad():
        first = project()
        assert project() is first, "computed once while nothing changes"
        part.prompt.mul_(2.0)
        assert not torch.equal(project().keys, first.keys)
    assert project().keys.requires_grad, "never a kept one in training"


@pytest.mark.parametrize("name", BOTH_METHODS)
def test_no_cache_dynamic_and_static_cache_give_the_same_answers(name, tmp_path):
    model = model_on(name)
    samples = mixed_samples(tmp_path, answers=False)
    settings = GenerationConf(max_new_tokens=8)
    answers = {cache: model.answer(samples, settings, cache=cache) for cache in ("none", "dynamic", "static")}
    assert answers["dynamic"] == answers["none"]
    assert answers["static"] == answers["none"]


@pytest.mark.parametrize("name", BOTH_METHODS)
def test_beams_with_images_per_row_equal_each_row_alone(name, tmp_path):
    model = model_on(name)
    samples = mixed_samples(tmp_path, answers=False)
    settings = GenerationConf(max_new_tokens=6, beams=3)
    together = model.answer(samples, settings)
    assert together == [model.answer([item], settings)[0] for item in samples]


@pytest.mark.parametrize("name", [*BOTH_METHODS, "phi3", "gpt_neox", "gemma"])
def test_padding_and_neighbours_do_not_change_a_row(name, tmp_path):
    """The batch's loss is the sum of the rows' alone; log-likelihoods likewise."""
    model = model_on(name)
    samples = mixed_samples(tmp_path)
    batch = batch_of(model, samples)
    alone = [batch_of(model, [item]) for item in samples]
    with torch.no_grad():
        assert torch.allclose(model(batch), sum(model(one) for one in alone), rtol=1e-5)
    rows = torch.cat([model.log_likelihood(one) for one in alone])
    assert torch.allclose(model.log_likelihood(batch), rows, atol=1e-4)


def dialog(turns, image=None, id="0"):
    return Sample(id, "s", dialog_segments(turns, "chat", ""), image, f"test, dialog {id}")


def test_dialogs_with_and_without_pictures_stand_in_one_batch(tmp_path):
    """The loss of all answers, each with all turns in front of it, is the sum over the turns asked one by one."""
    model = model_on()
    turns = [("what colour", "red"), ("what is left", "a circle"), ("and", "blue")]
    samples = [dialog(turns, picture(tmp_path, 1), "0"), dialog(turns[:2], None, "1"), sample(QUESTIONS[0], "red")]
    rows = model.log_likelihood(batch_of(model, samples))
    alone = torch.cat([model.log_likelihood(batch_of(model, [item])) for item in samples])
    assert torch.allclose(rows, alone, atol=1e-4)
    shorter = model.log_likelihood(batch_of(model, [dialog(turns[:2], picture(tmp_path, 1))]))
    encoder = SampleEncoder(model.tokenizer, 64)
    whole = encoder.encode(samples[0])
    last = replace(whole, spans=whole.spans[2:])
    assert torch.allclose(
        rows[0],
        shorter[0] + model.log_likelihood(make_batch([last], 0).with_features(model.features))[0],
        atol=1e-4,
    )


def test_the_history_is_seen_and_a_given_last_answer_is_not():
    model = model_on(images=False)
    settings = GenerationConf(max_new_tokens=6)
    first, other = ("what colour", "red"), ("what colour", "blue")
    answers = [model.answer([dialog([first, ("and", said)])], settings) for said in (None, "green")]
    assert answers[0] == answers[1]
    encoder = SampleEncoder(model.tokenizer, 64)
    encoded = [encoder.encode(dialog([turn, ("and", "green")])) for turn in (first, other)]
    likelihood = model.log_likelihood(make_batch([replace(one, spans=one.spans[1:]) for one in encoded], 0))
    assert likelihood[0] != likelihood[1], "the earlier answer must be seen"


def test_another_rows_image_never_changes_a_rows_answer(tmp_path):
    model = model_on()
    samples = mixed_samples(tmp_path)
    other = [samples[0], samples[1], sample(QUESTIONS[2], ANSWERS[2], picture(tmp_path, 9), id="2")]
    first = model.log_likelihood(batch_of(model, samples))
    second = model.log_likelihood(batch_of(model, other))
    assert torch.equal(first[:2], second[:2])
    assert first[2] != second[2], "the changed picture must be seen in its own row"


@pytest.mark.parametrize("name", BOTH_METHODS)
def test_a_row_without_an_image_is_the_text_only_model_and_not_a_black_picture(name, tmp_path):
    from PIL import Image

    model = model_on(name)
    black = tmp_path / "black.png"
    Image.new("RGB", (32, 32)).save(black)
    likelihood = [
        model.log_likelihood(batch_of(model, [sample(QUESTIONS[0], "red", image)])) for image in (None, black)
    ]
    blind = model_on(name, images=False)
    shared = {key: tensor for key, tensor in model.adapter.state_dict().items() if not key.startswith(VISUAL)}
    blind.adapter.load_state_dict(shared)
    expected = blind.log_likelihood(batch_of(blind, [sample(QUESTIONS[0], "red")]))
    assert torch.equal(likelihood[0], expected)
    assert not torch.equal(likelihood[1], expected)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "qwen3", "v2 llama_gqa"])
def test_packed_rows_equal_separate_ones(name):
    """Prompts are seen by every token, wherever its row begins in a pack."""
    from tests.families import random_tokens

    model = model_on(name, images=False)
    call = model.adapter.call()
    tokens = random_tokens(1, 12)
    starts = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with torch.no_grad(), model.host.adapter_slot.during(call):
        packed = model.host(input_ids=tokens, position_ids=starts, use_cache=False).logits[0]
        parts = [model.host(input_ids=part).logits[0] for part in (tokens[:, :5], tokens[:, 5:])]
    assert torch.allclose(packed, torch.cat(parts), atol=1e-4)


@pytest.mark.parametrize("name", [*BOTH_METHODS, "gpt_neox"])
def test_activation_checkpointing_gives_the_same_gradients_and_spares_the_lowest_layers(name, tmp_path):
    gradients, calls = {}, {}
    for checkpointing in (False, True):
        model = model_on(name, activation_checkpointing=checkpointing).train()
        counts = [0] * 4
        for index, module in enumerate(attention_modules(model.host)):
            module.register_forward_pre_hook(lambda *_, i=index, c=counts: c.__setitem__(i, c[i] + 1))
        model(batch_of(model, mixed_samples(tmp_path))).backward()
        gradients[checkpointing] = {n: p.grad for n, p in model.adapter.named_parameters()}
        calls[checkpointing] = counts
    for key, gradient in gradients[False].items():
        assert torch.equal(gradient, gradients[True][key]), key
    assert calls[False] == [1, 1, 1, 1]
    lowest = 2 if name in V2 else 1  # below the adapted ones a layer has no graph and runs once
    assert calls[True] == [lowest, 2, 2, 2]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_frozen_hosts_dropout_never_acts(checkpointing, tmp_path):
    model = model_on("llama_gqa", activation_checkpointing=checkpointing)
    for module in attention_modules(model.host):
        module.attention_dropout = 0.9
    batch = batch_of(model, mixed_samples(tmp_path))
    assert torch.equal(model.train()(batch), model.eval()(batch))


def test_the_head_runs_on_supervised_positions_only(tmp_path):
    model = model_on()
    batch = batch_of(model, mixed_samples(tmp_path))
    seen = []
    head = model.host.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model.log_likelihood(batch)
    handle.remove()
    assert seen == [(1, batch.supervised_tokens, model.host.config.vocab_size)]


def test_the_batch_carries_its_features_and_forward_opens_no_file(tmp_path):
    model = model_on()
    samples = mixed_samples(tmp_path)
    batch = batch_of(model, samples)
    assert batch.features[1] is None
    for path in tmp_path.glob("*.png"):
        path.unlink()
    bare = batch_of(model, [sample(q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)])
    with torch.no_grad():
        assert torch.equal(model(replace(bare, features=batch.features)), model(batch))
        assert not torch.equal(model(bare), model(batch))
    with pytest.raises(ValueError, match="has no features: batch.with_features"):
        model(replace(batch, features=None))


def test_a_batch_without_supervised_tokens_has_loss_zero_and_zero_gradients():
    model = model_on(images=False).train()
    loss = model(batch_of(model, [sample("what is red")]))
    loss.backward()
    assert loss == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.adapter.parameters())


def test_sampling_is_seeded_and_leaves_the_random_numbers_outside_alone():
    model = model_on(images=False)
    settings = GenerationConf(max_new_tokens=12, temperature=1.5)
    state = torch.get_rng_state()
    first, again, other = (model.answer([sample("what is red")], settings, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device=cuda, but torch sees no GPU"):
        AdaptedModel.build(None, None, None, device="cuda")


def test_more_tokens_than_the_host_was_built_for_are_refused_before_weights_are_read():
    parts = VisionSettings(enabled=False), AdapterConf()
    with pytest.raises(InputError, match=r"host.max_tokens=4096, .* built for 2048 tokens .* Set host.max_tokens=2048"):
        AdaptedModel.build(HostConf(path="tiny", max_tokens=4096), *parts, device="meta")
    assert AdaptedModel.build(HostConf(path="tiny", max_tokens=2048), *parts, device="meta").max_tokens == 2048


def test_logits_are_those_of_the_loss(tmp_path):
    model = model_on("v2 llama_gqa")
    batch = batch_of(model, mixed_samples(tmp_path))
    with torch.no_grad():
        logits = model.logits(batch.input_ids, batch.features, batch.attention_mask)
        chosen = logits.flatten(0, 1)[batch.rows].log_softmax(-1).gather(-1, batch.targets[:, None])
        assert torch.allclose(model(batch), -chosen.sum(), rtol=1e-5)
        alone = model.logits(batch.input_ids[2:], batch.features[2:], batch.attention_mask[2:])
    assert torch.allclose(
        logits[2][batch.attention_mask[2].bool()], alone[0][batch.attention_mask[2].bool()], atol=1e-4
    )


def test_it_says_what_it_is():
    said = repr(model_on("v2 llama_gqa"))
    assert (
        "llama, 4 layers, width 32" in said and "early_fusion 4," in said and "OpenClipEncoder, features (32,)" in said
    )
    assert "image encoder: none" in repr(model_on(images=False))
