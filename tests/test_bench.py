"""The commands of docs/performance.md run, and print and write their figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.case import Case, composed
from bench.contenders import as_published, floor, ours, plain_transformers
from bench.contenders.floor import predicting_rows, segments
from bench.generate import made_prompts
from bench.process_memory import counting_kept
from bench.scan import compared as fallen
from bench.sequences import batches_of, made_samples
from bench.shapes import SHAPES, host_of
from bench.train import compared, losses_agreed
from mmadapter.data.samples import ANSWER, Sample, Segment
from mmadapter.data.tokens import Encoded, SampleEncoder
from mmadapter.hosts.load import load_tokenizer


def bench(checkout: Path, *words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(text: str) -> list[list[str]]:
    """The rows of the Markdown table, below its heading."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_scaling_bench_prints_a_row_a_case(checkout):
    words = ["--engines", "single", "--processes", "1", "--steps", "1", "--width", "64", "--layers", "2"]
    row = bench(checkout, "scaling", *words, "--batch", "2", "--tokens", "16", "adapter.prompts.layers=2").splitlines()
    found = row[-1].split(" | ")
    assert found[:3] == ["| single", "1", "1.00"] and float(found[3]) > 0


def test_a_training_step_beside_others(checkout, tmp_path):
    """The table shows what result.json has, and who did not run is named."""
    words = ["train", "--shape", "tiny", "--steps", "2", "--warmup", "1", "--out", str(tmp_path)]
    said = bench(checkout, *words, "--contenders", "ours,litgpt")
    result = json.loads((tmp_path / "result.json").read_text())
    (row,) = result["rows"]
    assert row["contender"] == "ours" and len(row["outcomes"]) == 3 and row["speed"] == 1
    assert list(result["not_run"]) == ["litgpt"]
    assert "- not run: litgpt: pip install litgpt" in said

    (shown,) = cells(said)
    cpu = row["cpu_seconds"]
    assert 0 < cpu["min"] <= cpu["median"] <= cpu["max"]
    assert shown[0] == "ours" and shown[2] == f"{cpu['median']:.3g} ({cpu['min']:.3g}–{cpu['max']:.3g})"
    assert shown[4:] == [f"{row['tokens_per_second']:.0f}", "1.00", "", f"{row['peak_bytes'] / 1e6:.0f}"]
    assert (tmp_path / "table.md").read_text().strip() in said and "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """Three steps of the tiny shape."""
    shape = SHAPES["tiny"]
    batches = batches_of(made_samples(shape.vocabulary, shape.longest), shape.batch, steps=2)
    host = host_of(shape, tmp_path_factory.mktemp("bench"))
    sizes = shape.width, shape.layers, shape.prompt_layers, 10, shape.batch, shape.longest
    return Case(host, *sizes, steps=batches.of("sorted", warmup=1))


@pytest.mark.parametrize("adapter", ["v1", "v2"])
def test_contenders_with_the_same_adapter_have_the_same_loss(case, adapter):
    case = replace(case, adapter=adapter)
    steps = ours.training(case), as_published.training(case)
    of_ours, published = ([step(number) for number in range(3)] for step in steps)
    assert of_ours == pytest.approx(published, rel=1e-5) and len({*of_ours}) == 3
    pytest.importorskip("peft")
    from bench.contenders import peft_prompts, plain_v2

    first = (peft_prompts if adapter == "v1" else plain_v2).training(case)(0)
    assert first == pytest.approx(of_ours[0], rel=1e-5)
    assert plain_transformers.training(case)(0) != pytest.approx(first, rel=1e-4)  # which has no adapter


def test_answers_of_the_same_adapter_are_equal(case):
    pytest.importorskip("peft")
    from bench.contenders import peft_prompts

    tokenizer = load_tokenizer(case.host)
    prompts = made_prompts(tokenizer, 2, seed=0)
    ids = [list(item.ids) for item in SampleEncoder(tokenizer, 80).encode_many(prompts)]
    case = replace(case, prompts=prompts, prompt_ids=ids, new_tokens=6)
    tokens = peft_prompts.generation(case)(0)
    assert [len(row) for row in tokens] == [6, 6]  # a made host never ends an answer
    assert ours.generation(case)(0) == [text.strip() for text in tokenizer.batch_decode(tokens, True)]


def test_what_a_step_keeps_for_its_backward_is_counted():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    kept = counting_kept(lambda rows: (torch.ones(rows, 4) @ weight).exp().sum().backward())
    assert [kept(8)[1], kept(16)[1]] == [2 * 8 * 16, 2 * 16 * 16]  # what was multiplied, and what exp gave; float32


def test_losses_that_differ_are_told():
    rows = [
        {"contender": name, "order": "sorted", "outcomes": [2.0, last]}
        for name, last in (("ours", 1.0), ("as_published", 1.1))
    ]
    problems, agreements = losses_agreed(rows, 1e-5, 1e-4)
    assert len(agreements) == 1 and "first step" in agreements[0]
    assert len(problems) == 1 and "all steps (sorted)" in problems[0] and "1.0e-01" in problems[0]


def test_times_are_compared_whole():
    rows = [
        {"contender": name, "total_seconds": seconds}
        for name, seconds in (("ours", 2.0), ("peft", 5.0), ("floor", 1.5))
    ]
    compared(rows)
    assert [row["speed"] for row in rows] == pytest.approx([1.0, 0.4, 4 / 3])
    assert [row["share_of_floor"] for row in rows] == pytest.approx([0.75, 0.3, 1.0])


def test_both_orders_have_the_same_samples_and_ours_has_less_padding():
    batches = batches_of(made_samples(32000, 512), batch=8, steps=8)

    def padded(steps):
        return sum(len(step) * max(len(item.ids) for item in step) for step in steps)

    ids = [sorted(item.ids.tobytes() for step in steps for item in step) for steps in (batches.sorted, batches.drawn)]
    assert ids[0] == ids[1] and len(ids[0]) == 64
    real = sum(len(item.ids) for step in batches.sorted for item in step)
    assert padded(batches.sorted) < 1.15 * real < 1.5 * real < padded(batches.drawn)
    assert 90 < real / 64 < 140  # tokens a sample, as Alpaca's


def sample(ids: list[int], learned: int) -> Encoded:
    return Encoded(Sample("0", "bench", (Segment("x", ANSWER),), None, "x"), array("i", ids), ((learned, len(ids)),))


def test_the_floor_counts_every_beginning_once():
    rows = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 7], [1, 2, 3]]
    found = segments(rows)
    assert sorted(found) == [(1, 0), (1, 1), (1, 3), (2, 1), (2, 3)]
    assert sum(own for own, _ in found) == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})
    # [1, 2] and [1, 2, 3] are followed by something learned; [1, 2] in both samples
    assert predicting_rows([sample([1, 2, 8], 2), sample([1, 2, 3, 9], 2)]) == 2


def test_the_floor_does_its_products_for_every_batch(case):
    step = floor.training(case)
    for number, batch in enumerate(case.steps):
        beginnings = {tuple(item.ids[:end]) for item in batch for end in range(1, len(item.ids))}
        assert step(number) == {"rows": len(beginnings), "learned": predicting_rows(batch)}


def test_the_scan_leaves_large_products_out_and_compares_with_the_floor(checkout, tmp_path):
    words = [
        "--shape",
        "tiny",
        "--tokens",
        "8,16",
        "--rows",
        "1,4",
        "--most",
        "32",
        "--steps",
        "1",
        "--out",
        str(tmp_path),
    ]
    bench(checkout, "scan", *words, "--out", str(tmp_path))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["tokens"], row["rows"]) for row in rows if row["contender"] == "ours"] == [(8, 1), (8, 4), (16, 1)]
    assert all(row["share_of_floor"] == 1 and row["fall"] == 0 for row in rows if row["contender"] == "floor")


def test_captions_of_whole_pictures_are_those_that_are_drawn(checkout, tmp_path):
    bench(checkout, "captions", "--shape", "tiny", "--steps", "2", "--pictures", "2", "--out", str(tmp_path))
    together, drawn = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert (together["contender"], drawn["contender"], drawn["speed"]) == ("ours@together", "ours@drawn", 1)


def test_a_fall_is_what_the_floor_does_not_have():
    speeds = {("ours", 8): 50.0, ("floor", 8): 100.0, ("ours", 16): 20.0, ("floor", 16): 80.0}
    rows = [{"contender": who, "tokens": n, "rows": 1, "tokens_per_second": s} for (who, n), s in speeds.items()]
    fallen(rows)
    assert [row["share_of_floor"] for row in rows] == [0.5, 1, 0.25, 1]
    assert [row["fall"] for row in rows] == [0, 0, 0.5, 0]


def test_the_gpu_rows_say_so_where_there_is_no_gpu_and_their_settings_are_right(checkout):
    script = ["bash", "bench/gpu.sh"]
    said = {"cwd": checkout, "capture_output": True, "text": True}
    shown = subprocess.run([*script, "--print"], **said).stdout.splitlines()
    trainings = [line.split()[2:] for line in shown if line.startswith("python train.py ")]
    assert len(trainings) == 6 and all(composed(words).engine.device == "cuda" for words in trainings)
    benches = [line.split()[3:6] for line in shown[6:]]
    assert benches == [["train", "--shape", "7b"], ["generate", "--shape", "7b"]]

    done = subprocess.run(script, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, **said)
    lines = done.stdout.splitlines()
    assert done.returncode == 3 and len(lines) == len(shown) and all(line.endswith(": no GPU here") for line in lines)
