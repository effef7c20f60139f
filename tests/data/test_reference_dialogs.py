"""Real dialogs, brought into the readers' layouts: MT-bench as ShareGPT, LLaVA's seeds and LLaVA-Pretrain as LLaVA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.command import SOUND
from data_prep.instruct import main
from mmadapter.data.batches import make_batch
from mmadapter.data.tokens import SampleEncoder
from tests.data.reading import read_llava, read_sharegpt
from tests.data.tokenizers_at_hand import byte_level

pytestmark = pytest.mark.reference_data


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def said(turns) -> list[dict]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]


def test_two_turn_answers_as_sharegpt(reference_data, tmp_path, caplog):
    folder = reference_data / "dialog"
    gpt4 = lines(folder / "mt_bench_gpt4_answers.jsonl")
    answered = {line["question_id"]: line["choices"][0]["turns"] for line in gpt4}
    items = []
    for line in lines(folder / "mt_bench_question.jsonl"):
        pairs = zip(line["turns"], answered.get(line["question_id"], ()), strict=False)
        texts = [text for pair in pairs for text in pair] or line["turns"][:1]
        items.append({"id": str(line["question_id"]), "conversations": said(texts)})
    file = tmp_path / "sharegpt.json"
    file.write_text(json.dumps(items))
    samples = read_sharegpt(file, training=True, split="all")
    assert len(items) == 80 and len(samples) == 30 and "no answered turn: 50" in caplog.text
    encoder = SampleEncoder(byte_level(), 2048, long_answers="cut")
    encoded = encoder.encode_many(samples)
    assert sum(len(item.spans) for item in encoded) + encoder.cut_turns == 60
    assert make_batch(encoded, encoder.pad_id).supervised_tokens > 1000
    assert main(["--root", str(file)]) == SOUND


def test_llavas_seed_conversations(reference_data, tmp_path):
    items = []
    for file in sorted((reference_data / "llava_instruct").glob("conversation_*_conv.txt")):
        parts = [part.strip().partition("\n") for part in file.read_text(encoding="utf-8").split("===")]
        texts = [text.strip() for _, _, text in parts]
        texts[0] = f"<image>\n{texts[0]}"
        items.append({"id": file.stem, "image": "a.jpg", "conversations": said(texts)})
    (tmp_path / "llava.json").write_text(json.dumps(items))
    samples = read_llava(tmp_path / "llava.json", training=True, split="all", images=False)
    assert len(samples) == 2
    turns = [sum(segment.kind == "answer" for segment in sample.segments) for sample in samples]
    assert min(turns) > 3 and all("<image>" not in sample.prompt for sample in samples)


def test_llava_pretrain_is_read_with_its_pictures(reference_data, capsys):
    root = reference_data / "llava_pretrain"
    samples = read_llava(root / "blip_laion_cc_sbu_subset.json", training=True, split="all", root=root / "images")
    assert len(samples) == 66 and all(sample.image.is_file() for sample in samples)
    assert main(["--root", str(root), "--images", str(root / "images"), "--check"]) == SOUND
    assert "pictures decoded: 66" in capsys.readouterr().out


def test_real_alpaca_files_are_sound(reference_data, capsys):
    assert main(["--root", str(reference_data / "alpaca" / "alpaca_first2500.json")]) == SOUND
    out = capsys.readouterr().out
    assert "empty output: 1, the first: " in out and 'inputs that say "no input": 27' in out
