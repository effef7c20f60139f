"""The page and the table about the arms of experiment=interference, from run folders of several seeds."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy
import pytest
import yaml
from safetensors.numpy import save_file

from examples.interference.gather import ARMS, gather, main
from mmadapter.errors import InputError


def put_run(folder, seed, scores, moved=()):
    """A finished run: `scores` maps (arm, task) to metrics; arms in `moved` changed an instruction tensor."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"experiment: interference\nseed: {seed}\n")
    for arm in ARMS:
        own = folder / "variants" / arm.name
        (own / "adapter").mkdir(parents=True)
        (own / "config.yaml").write_text(f"seed: {seed}\n")
        tensors = {"prompt": numpy.full(3, 2.0 if arm.name in moved else 1.0, dtype="float32")}
        if arm.reference is not None:
            tensors["projection"] = numpy.ones(2, dtype="float32")
        save_file(tensors, own / "adapter" / "adapter.safetensors")
    for (arm, task), metrics in scores.items():
        place = folder / "variants" / arm / "eval" / task
        place.mkdir(parents=True)
        (place / "metrics.json").write_text(json.dumps(metrics))
    return folder


def scores(following, with_picture):
    return {
        ("v2_continued", "instruct"): {"exact_match": 80.0},
        ("v2", "instruct"): {"exact_match": following},
        ("v2", "instruct_with_picture"): {"exact_match": with_picture},
        ("v2", "coco_caption"): {"CIDEr": 1.5, "BLEU-4": 0.25},
        ("v2", "scienceqa"): {"likelihood_accuracy": {"Avg": 30.0}},
    }


def table_of(folder):
    with open(folder / "interference.csv", newline="") as file:
        return {(row["arm"], row["measure"]): row for row in csv.DictReader(file)}


def test_every_seed_and_the_mean_stand_in_the_table(tmp_path):
    folders = [put_run(tmp_path / str(seed), seed, scores(80.0, 70.0 + seed)) for seed in (2, 0)]
    page = gather(folders, tmp_path / "out")
    table = table_of(tmp_path / "out")
    row = table["v2", "with_picture"]
    assert (row["mean"], row["seed 0"], row["seed 2"]) == ("71.0000", "70.0000", "72.0000")
    assert table["v2", "with_picture_change"]["mean"] == "-9.0000"  # against instructions alone, without a picture
    assert table["v2", "following_change"]["mean"] == "0.0000"
    assert table["v2", "cider"]["mean"] == "1.5000" and table["v2", "scienceqa"]["mean"] == "30.0000"
    assert ("v1_mixed", "cider") not in table
    text = page.read_text()
    assert "(c) V2" in text and "seed 2: 72.00" in text and text.count("<svg") == 7
    assert "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.parametrize("moved,told", [((), "yes"), (("v2",), "no")])
def test_a_moved_instruction_tensor_shows(tmp_path, moved, told):
    page = gather([put_run(tmp_path / "run", 0, {}, moved)], tmp_path / "out").read_text()
    row = page[page.index("<td>(c) V2</td>") :]
    assert row[: row.index("</tr>")].endswith(f"<td>{told}</td>")


def test_one_changed_seed_among_several_shows(tmp_path):
    folders = [put_run(tmp_path / "0", 0, {}), put_run(tmp_path / "1", 1, {}, moved=("v2",))]
    page = gather(folders, tmp_path / "out").read_text()
    row = page[page.index("<td>(c) V2</td>") :]
    assert row[: row.index("</tr>")].endswith("<td>no</td>")


def test_the_same_seed_twice_and_other_runs_are_refused(tmp_path, capsys):
    one, again = put_run(tmp_path / "a", 0, {}), put_run(tmp_path / "b", 0, {})
    with pytest.raises(InputError, match="both have seed 0"):
        gather([one, again], tmp_path / "out")
    (tmp_path / "other").mkdir()
    assert main([str(tmp_path / "other"), "--output", str(tmp_path / "out")]) == 2
    assert "no whole run of experiment=interference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_arms_of_the_experiment_are_those_that_are_gathered(checkout):
    command = [sys.executable, "train.py", "--config-dir", "examples/interference", "experiment=interference"]
    printed = subprocess.run([*command, "--cfg", "job"], cwd=checkout, check=True, capture_output=True, text=True)
    assert set(yaml.safe_load(printed.stdout)["variants"]) == {arm.name for arm in ARMS}


def test_the_page_is_made_by_a_command(checkout, tmp_path):
    put_run(tmp_path / "run", 0, scores(80.0, 70.0))
    command = [
        sys.executable,
        "examples/interference/gather.py",
        str(tmp_path / "run"),
        "--output",
        str(tmp_path / "out"),
    ]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    assert table_of(tmp_path / "out")["v2", "with_picture"]["mean"] == "70.0000"
