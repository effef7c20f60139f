"""`generate`, `loss_of` and `chat`: rows with and without pictures, on both methods."""

from __future__ import annotations

import itertools
import json
import logging
import threading

import pytest
import torch
from PIL import Image

from mmadapter.data.batches import make_batch
from mmadapter.data.samples import Sample
from mmadapter.data.tokens import SampleEncoder
from mmadapter.errors import InputError
from mmadapter.hosts.settings import GenerationConf
from mmadapter.model import AdaptedModel, Dialog
from tests.data.prompts import alpaca_segments, dialog_segments
from tests.data.tokenizers_at_hand import byte_level
from tests.models import model_on, picture

METHODS = ["llama_gqa", "v2 llama_gqa"]
PROMPTS = ["what colour is the circle", "what is on the left", "a circle", "what colour is the circle"]
ANSWERS = ["red", "a small blue square .", "is blue and green", "green"]


def pictures(folder):
    """For four prompts: a picture, none, another one as a PIL image, none."""
    return [picture(folder, 1), None, Image.open(picture(folder, 2)), None]


def seeing_model_on(name: str) -> AdaptedModel:
    """Pictures and prompts count for so much that even a random host's greedy answers tell them apart."""
    model = model_on(name, gates=3.0, seed=7)
    adapter = model.adapter
    with torch.no_grad():
        adapter["projection"].widen.weight.mul_(100.0)
        for layer in adapter["prompts"].values():
            layer.prompt.mul_(10.0)
    return model


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_rows_with_and_without_pictures_in_one_batch_equal_each_row_alone(name, beams, tmp_path):
    model, images = seeing_model_on(name), pictures(tmp_path)
    wanted = {"template": "plain", "max_new_tokens": 6, "beams": beams}
    together = model.generate(PROMPTS, images, **wanted)
    alone = [model.generate(prompt, image, **wanted)[0] for prompt, image in zip(PROMPTS, images, strict=True)]
    assert together == alone
    assert together[0] != together[3], "the same question with a picture and without"
    assert together[0] != together[2], "two pictures"
    for batch_size in (1, 2, 3):
        assert model.generate(PROMPTS, images, batch_size=batch_size, **wanted) == together


@pytest.mark.parametrize("name", METHODS)
def test_several_returns_of_rows_with_and_without_pictures_equal_each_row_alone(name, tmp_path):
    """The rows of one picture stand side by side: beams, and several returns of each."""
    from transformers import GenerationConfig

    model = seeing_model_on(name)
    encoder = SampleEncoder(model.tokenizer, 64)
    paths = [picture(tmp_path, 1), None, picture(tmp_path, 2)]
    samples = [Sample("0", "s", alpaca_segments(p), i, "test") for p, i in zip(PROMPTS[:3], paths, strict=True)]

    def returns(asked):
        batch = make_batch([encoder.encode(sample) for sample in asked], 0).with_features(model.features)
        settings = GenerationConfig(
            max_new_tokens=5, num_beams=3, num_return_sequences=2, eos_token_id=2, pad_token_id=0
        )
        with torch.no_grad(), model.host.adapter_slot.during(model._call_of(batch, keep=True)):
            tokens = model.host.generate(
                batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings
            )
        return model.tokenizer.batch_decode(tokens[:, batch.input_ids.shape[1] :], skip_special_tokens=True)

    together = returns(samples)
    assert len(together) == 6 and together == [text for sample in samples for text in returns([sample])]


def test_the_instruction_stands_in_alpacas_frame_and_a_plain_prompt_as_it_is(tmp_path):
    model = model_on(images=False)
    settings = GenerationConf(max_new_tokens=5)
    framed = Sample("0", "s", alpaca_segments(PROMPTS[0]), None, "test")
    assert model.generate(PROMPTS[0], max_new_tokens=5) == model.answer([framed], settings)
    assert model.generate(PROMPTS[0], max_new_tokens=5) != model.generate(
        PROMPTS[0], template="plain", max_new_tokens=5
    )


def test_one_picture_serves_all_prompts_and_is_encoded_once(tmp_path, monkeypatch):
    model, image = model_on(), picture(tmp_path, 1)
    seen = []
    encode = model.features.encode
    monkeypatch.setattr(model.features, "encode", lambda images: seen.extend(images) or encode(images))
    shared = model.generate(PROMPTS[:3], image, template="plain", max_new_tokens=5)
    assert len(seen) == 1
    assert shared == model.generate(PROMPTS[:3], [image] * 3, template="plain", max_new_tokens=5)


def test_a_file_that_changes_is_seen_anew_and_pil_sees_what_the_path_gives(tmp_path):
    model, path = model_on(gates=3.0), tmp_path / "a.png"
    pixels = Image.open(picture(tmp_path, 1)).convert("RGBA")
    pixels.putalpha(80)  # as a path it is laid over white; PIL's own conversion would drop the alpha
    pixels.save(path)
    first = [model._features_of([kind(path)])[0] for kind in (str, Image.open)]
    assert torch.equal(*first)
    Image.open(picture(tmp_path, 2)).save(path)
    assert not torch.equal(model._features_of([path])[0], first[0])


def test_a_photo_that_was_stored_lying_is_turned_once_in_generate_and_in_chat(tmp_path):
    model, path, exif = model_on(gates=3.0), tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.open(picture(tmp_path, 1)).convert("RGB").crop((0, 0, 32, 16)).save(path, exif=exif)
    _, dialog = model.chat(PROMPTS[0], path, max_new_tokens=2)
    assert torch.equal(model._features_of([dialog.picture])[0], model._features_of([path])[0])


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_texts_is_the_mean_over_answer_tokens(name, tmp_path):
    model, images = model_on(name), pictures(tmp_path)
    paths = [images[0], None, picture(tmp_path, 2), None]
    rows = zip(PROMPTS, ANSWERS, paths, strict=True)
    samples = [Sample("0", "s", alpaca_segments(p, "", a), i, "test") for p, a, i in rows]
    encoder = SampleEncoder(model.tokenizer, 64)
    batch = make_batch([encoder.encode(sample) for sample in samples], 0).with_features(model.features)
    with torch.no_grad():
        expected = model(batch) / batch.supervised_tokens
    loss = model.loss_of(list(zip(PROMPTS, ANSWERS, images, strict=True)))
    assert torch.equal(loss, expected)
    alone = [model.loss_of([triple]) for triple in zip(PROMPTS, ANSWERS, images, strict=True)]
    sizes = torch.tensor([encoder.encode(sample).spans[0] for sample in samples]).diff()[:, 0]
    assert torch.allclose(loss, (torch.stack(alone) * sizes).sum() / sizes.sum(), rtol=1e-5)
    loss.backward()
    gradients = [item.parameter.grad for item in model.trainable_parameters()]
    assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_sampling_is_seeded_and_leaves_the_random_numbers_outside_alone():
    model = model_on(images=False)
    state = torch.get_rng_state()
    sampled = {"temperature": 1.5, "max_new_tokens": 12, "template": "plain"}
    first, again, other = (
        model.generate(["what is red"] * 3, seed=seed, batch_size=1, **sampled) for seed in (1, 1, 9)
    )
    assert first == again != other
    assert len(set(first)) == 3, "each batch draws other numbers"
    assert model.generate("what is red", **sampled) != model.generate("what is red", **sampled), "no seed: other ones"
    assert torch.equal(torch.get_rng_state(), state)


def asked_of(model, turns, image, **settings):
    sample = Sample("0", "s", dialog_segments(turns, "alpaca"), image, "test")
    return model.answer([sample], GenerationConf(max_new_tokens=5, **settings))[0]


@pytest.mark.parametrize("name", METHODS)
def test_the_first_turns_picture_stays_for_the_dialog(name, tmp_path):
    model, image = seeing_model_on(name), picture(tmp_path, 1)
    one, history = model.chat("what colour is the circle", image, max_new_tokens=5)
    assert one == asked_of(model, [("what colour is the circle", None)], image)
    image.unlink()
    two, longer = model.chat("and the square", history=history, max_new_tokens=5)
    image = picture(tmp_path, 1)
    turns = [("what colour is the circle", one), ("and the square", None)]
    assert two == asked_of(model, turns, image)
    assert longer.turns == (*history.turns, ("and the square", two)) and len(history.turns) == 1
    assert longer.left_out == 0
    blind = model.chat("and the square", history=Dialog(history.turns), max_new_tokens=5)[0]
    assert blind == asked_of(model, turns, None) != two, "the same turns without the picture"
    with pytest.raises(InputError, match="a dialog has one"):
        model.chat("and this", image, history=longer)


def test_a_dialog_is_asked_in_the_template_that_it_is_told():
    model = model_on(images=False, seed=2)
    answer, history = model.chat("what is left", template="chat", max_new_tokens=5)
    sample = Sample("0", "s", dialog_segments([("what is left", None)], "chat"), None, "test")
    assert answer == model.answer([sample], GenerationConf(max_new_tokens=5))[0]
    assert answer != model.chat("what is left", max_new_tokens=5)[0]
    with pytest.raises(InputError, match="template=plain has no turns"):
        model.chat("what is left", template="plain", max_new_tokens=5)


STREAMED = [
    {"template": "alpaca"},
    {"temperature": 1.5, "seed": 3},
    {"beams": 2},
    {"template": "chat", "system": "Be kind."},
]


@pytest.mark.parametrize("settings", STREAMED)
def test_a_stream_is_chats_answer_in_pieces(settings, tmp_path):
    model, image = model_on(seed=2), picture(tmp_path, 1)
    counts = []
    for seen, message in ((None, "what is left"), (image, "what is red"), (image, "a circle")):
        for history in (None, Dialog((("a", "b"),))):
            pieces = list(model.stream(message, seen, history, max_new_tokens=12, **settings))
            answer = model.chat(message, seen, history, max_new_tokens=12, **settings)[0]
            assert "".join(pieces) == answer and all(pieces)
            counts.append(len(pieces))
    assert max(counts) <= 1 if "beams" in settings else max(counts) > 1


def test_a_stream_that_is_left_ends_its_generation_and_the_model_goes_on():
    model = model_on(images=False, seed=2)
    before, threads = model.chat("what is left", max_new_tokens=5)[0], threading.active_count()
    passes = []
    handle = model.host.register_forward_hook(lambda *_: passes.append(1))
    stream = model.stream("what is left", max_new_tokens=30, template="alpaca")
    assert next(stream)
    stream.close()
    handle.remove()
    assert threading.active_count() == threads and len(passes) < 30
    assert model.chat("what is left", max_new_tokens=5)[0] == before


def test_what_goes_wrong_in_a_stream_is_raised_to_its_reader(monkeypatch):
    model = model_on(images=False)
    with pytest.raises(InputError, match="A prompt is ''"):
        model.stream("")
    stream = model.stream("a", max_new_tokens=5)
    monkeypatch.setattr(model.tokenizer, "decode", None)
    with pytest.raises(TypeError):
        list(stream)


def test_no_character_is_split_between_the_pieces_of_a_stream():
    model = model_on(images=False)
    model.tokenizer = byte_level()
    text = "Über den Größen: 红色 圆, 😀!"
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)
    told = [model._safe_beginning(ids[:count]) for count in range(1, len(ids) + 1)]
    assert all(text.startswith(one) for one in told) and told[-1] == text
    assert all(later.startswith(one) for one, later in itertools.pairwise(told))


def test_what_ends_an_answer_is_no_part_of_it_even_where_it_is_no_special_token(tmp_path):
    model = model_on(images=False, seed=2)
    whole = model.chat("what is left", max_new_tokens=12)[0]
    end = next(word for word in whole.split() if word != whole.split()[0])  # a plain word of the vocabulary
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": model.tokenizer.convert_tokens_to_ids(end)})
    )
    model.folder = tmp_path
    short = whole.partition(end)[0].strip()
    assert short and model.chat("what is left", max_new_tokens=12)[0] == short
    assert "".join(model.stream("what is left", max_new_tokens=12)) == short


def test_a_picture_may_come_in_a_later_turn(tmp_path):
    model, image = model_on(), picture(tmp_path, 1)
    one, history = model.chat("a", max_new_tokens=5)
    two, longer = model.chat("what is this", image, history, max_new_tokens=5)
    assert history.picture is None and longer.picture is not None
    assert two == asked_of(model, [("a", one), ("what is this", None)], image)


def test_the_oldest_turns_are_left_out_of_a_long_dialog_and_it_is_said(caplog):
    model = model_on(images=False)  # 64 tokens of context; the frame alone takes about 30
    history = Dialog(tuple((f"{word} circle square", f"{word} {word}") for word in ("red", "blue", "green", "large")))
    with caplog.at_level(logging.WARNING, "mmadapter"):
        answer, longer = model.chat("what is left", history=history, max_new_tokens=5)
    assert 0 < longer.left_out < 4 and len(longer.turns) == 5
    assert [record.getMessage() for record in caplog.records] == [
        f"{longer.left_out} oldest turns of the dialog no longer fit and are not seen."
    ]
    seen = Dialog(history.turns[longer.left_out :])
    assert model.chat("what is left", history=seen, max_new_tokens=5)[0] == answer
    caplog.clear()
    model.chat("what is left", history=Dialog(history.turns, left_out=longer.left_out), max_new_tokens=5)
    assert not caplog.records, "said once, not in every turn"


def test_an_empty_answer_does_not_end_a_dialog():
    model = model_on(images=False)
    answer, history = model.chat("what is left", history=Dialog((("a", ""),)), max_new_tokens=5)
    assert history.turns == (("a", ""), ("what is left", answer))


def test_a_prompt_that_is_too_long_is_cut_and_it_is_said(caplog):
    model = model_on(images=False)
    with caplog.at_level(logging.WARNING, "mmadapter"):
        answers = model.generate(["red " * 70, "a circle"], template="plain", max_new_tokens=5)
        assert "1 of 2 prompts are longer than 59 tokens; their ends are cut off." in caplog.text
        assert answers[0] == model.generate("red " * 58, template="plain", max_new_tokens=5)[0]
        caplog.clear()
        model.chat("red " * 70, history=Dialog((("a", "b"),)), max_new_tokens=5)
    assert "1 oldest turns" in caplog.text and "1 of 1 prompts are longer" in caplog.text


REFUSED = [
    (["a", "b"], {"images": ["x.png"]}, "2 prompts and 1 images"),
    ("a", {"images": "no/such.png"}, "there is no such image file"),
    (["a", " "], {}, "A prompt is ' '"),
    ("a", {"template": "x"}, "template is 'x'; allowed: auto, alpaca, vicuna, plain, chat"),
    ("a", {"beams": 2, "temperature": 0.5}, "beam search does not sample"),
    ("a", {"beams": 0, "top_p": 0}, "top_p=0: must be above 0.*beams=0: must be at least 1"),
    ("a", {"max_new_tokens": 64}, "leaves no room for a prompt"),
    ("a", {"batch_size": 0}, "batch_size=0: must be at least 1"),
]


@pytest.mark.parametrize(("prompts", "settings", "message"), REFUSED)
def test_what_cannot_be_is_refused(prompts, settings, message):
    with pytest.raises(InputError, match=message):
        model_on().generate(prompts, **{"max_new_tokens": 5, **settings})


def test_a_picture_for_a_text_only_adapter_is_refused(tmp_path):
    with pytest.raises(InputError, match="this adapter is text only"):
        model_on(images=False).generate("a", picture(tmp_path, 1), max_new_tokens=5)


def test_no_prompts_give_no_answers_and_no_triples_no_loss():
    model = model_on(images=False)
    assert model.generate([], max_new_tokens=5) == []
    with pytest.raises(InputError, match="no triple"):
        model.loss_of([])
