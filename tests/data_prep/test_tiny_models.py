"""The tiny models: training stops and continues exactly, and the shipped folders load with the standard loaders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_prep.tiny_models import Recipe, train
from data_prep.world.clip import MODEL, TinyClip
from data_prep.world.llama import FADED_STEPS, TinyLlama, text_tokenizer
from data_prep.world.text import world_texts
from mmadapter.errors import InputError

TINY = Path(__file__).parents[2] / "mmadapter" / "tiny"
RECIPE = Recipe(steps=5, batch_size=4, learning_rate=1e-3, warmup_steps=2, weight_decay=0.1, seed=5)
SMALL_CLIP = MODEL | {
    "embed_dim": 16,
    "vision_cfg": MODEL["vision_cfg"] | {"layers": 1, "width": 32},
    "text_cfg": MODEL["text_cfg"] | {"layers": 1, "width": 32, "heads": 1},
}
SMALL_LLAMA = {
    "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 256,
}  # fmt: skip


def quiet(line: str) -> None:
    pass


def train_small_clip(folder: Path, recipe: Recipe = RECIPE, **settings) -> torch.nn.Module:
    made = TinyClip(recipe.seed, recipe.batch_size, SMALL_CLIP)
    return train(made, recipe, folder / "clip", folder / "state" / "clip.pt", report=quiet, **settings)


def train_small_llama(folder: Path, **settings) -> torch.nn.Module:
    made = TinyLlama(RECIPE.seed, RECIPE.batch_size, SMALL_LLAMA, documents=100)
    return train(made, RECIPE, folder / "llama", folder / "state" / "llama.pt", report=quiet, **settings)


@pytest.mark.parametrize("train_small", [train_small_clip, train_small_llama], ids=["clip", "llama"])
def test_training_continues_exactly(train_small, tmp_path):
    whole = train_small(tmp_path / "whole").state_dict()
    train_small(tmp_path / "parts", stop_at=2)
    parts = train_small(tmp_path / "parts", resume=True).state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    train_small_clip(tmp_path, stop_at=1)
    with pytest.raises(InputError, match="another recipe"):
        train_small_clip(tmp_path, replace(RECIPE, steps=6), resume=True)


def test_the_learning_rate_warms_up_and_falls():
    recipe = Recipe(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, weight_decay=0.0, seed=0)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.02 <= rates[-1] < 0.03


def test_a_trained_folder_replaces_the_older_one_whole(tmp_path):
    train_small_llama(tmp_path, stop_at=1)
    (tmp_path / "llama" / "left_over.txt").write_text("old")
    train_small_llama(tmp_path, stop_at=2)
    names = {path.name for path in (tmp_path / "llama").iterdir()}
    assert "left_over.txt" not in names and {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "state"}


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer(400)


@pytest.mark.parametrize("text", ["Options: (A) red (B) blue\n\nx", "naïve 猫 👍\t\u2028 end", "The answer is B."])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("step", [7, FADED_STEPS])
def test_packed_documents_do_not_see_each_other(step):
    made = TinyLlama(RECIPE.seed, RECIPE.batch_size, SMALL_LLAMA, documents=400)
    inputs, targets, positions, visible = made.rows(step)
    starts = inputs == made.tokenizer.bos_token_id
    assert (positions[starts] == 0).all() and starts.sum() > 4
    for row, column in starts.nonzero().tolist():
        assert not visible[row, 0, column:, :column].any()
        if column:
            assert targets[row, column - 1] == -100
    assert not visible.triu(1).any()


def test_the_text_never_uses_a_task_template():
    texts = world_texts("check")
    for _ in range(2000):
        text = next(texts)
        assert "The answer is A" not in text and "Options:" not in text and "### " not in text
        assert not ("Question:" in text or "Answer:" in text)


def shipped(part: str) -> Path:
    folder = TINY / part
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there yet: python -m data_prep.tiny_models --part {part}")
    return folder


def test_the_shipped_llama_loads_and_speaks(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shipped("llama")
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()
    assert model.config.max_position_embeddings >= 1024 and len(words) == model.config.vocab_size
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    told = words("The shape is red. What color is it? It is", return_tensors="pt")
    answer = model(**told).logits[0, -1].argmax().item()
    assert words.decode([answer]).strip() == "red"


def test_the_shipped_clip_loads_by_name_and_by_folder_to_the_same_bits(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import open_clip

    folder = shipped("clip")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "made-up-shapes.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "made-up-shapes.json")
    by_name = open_clip.create_model("made-up-shapes", pretrained=str(folder / "open_clip_model.safetensors")).eval()
    by_folder = open_clip.create_model(f"local-dir:{folder}").eval()
    pictures = torch.rand(2, 3, 64, 64)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["A large red circle.", "a star"])
    with torch.no_grad():
        assert torch.equal(by_name.encode_image(pictures), by_folder.encode_image(pictures))
        assert torch.equal(by_name.encode_text(tokens), by_folder.encode_text(tokens))
    stored = load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(by_name.state_dict()[name], tensor.float()) for name, tensor in stored.items())


def test_the_shipped_weights_stay_small():
    if not TINY.is_dir():
        pytest.skip(f"{TINY} is not there yet")
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < 10_000_000
    assert not list(TINY.rglob("*.partial"))
