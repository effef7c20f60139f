"""experiment=finetune: one's own data in one command, by their size, with or without pictures."""

import json
import shlex

import pytest

from mmadapter.config import validate
from mmadapter.data.training import read_samples
from mmadapter.errors import InputError
from mmadapter.runs.state import RunFolder
from mmadapter.tasks import task_of
from mmadapter.training.by_data import decided_by_data
from mmadapter.training.run import run
from tests.config.composing import run_conf
from tests.training.tiny_run import save_pictures

QUICK = (
    *("training.tensorboard=false", "threads=1", "host.max_tokens=128"),
    *("tasks.instruct.generation.max_new_tokens=3", "tasks.instruct.limit=2"),
)


def finetune(folder, path, *overrides):
    conf = run_conf("experiment=finetune", f"data.path={path}", f"runs_root={folder / 'runs'}", *QUICK, *overrides)
    validate(conf)
    return conf


@pytest.fixture
def texts(tmp_path):
    """Twenty instructions in Chinese."""
    items = [{"instruction": f"{number}是什么？", "output": f"{number}是一个数。"} for number in range(20)]
    file = tmp_path / "own.json"
    file.write_text(json.dumps(items, ensure_ascii=False))
    return file


@pytest.fixture
def pictures(tmp_path):
    return save_pictures(tmp_path / "pictures")


def test_texts_are_trained_and_scored_beside_the_host_and_the_end_names_what_to_type(texts, tmp_path, capsys):
    summary = run(finetune(tmp_path, texts, "optimizer.steps=3"))
    said, folder = capsys.readouterr().out, summary["folder"]
    assert "own.json" in said and "pictures: none in 18 samples, so this is trained on text alone" in said
    assert "n = 18 samples: batch 2 " in said and summary["training"]["steps"] == 3
    assert summary["training"]["effective_batch"] == 2 and summary["training"]["lr"] == 0.01
    assert not RunFolder(folder).config["vision"]["enabled"]
    assert sorted(path.name for path in (folder / "comparison").iterdir()) == ["host"]  # text_only is this run
    metrics = json.loads((folder / "eval" / "instruct" / "metrics.json").read_text())
    assert metrics["BLEU_counts"] == "characters" and {"F1", "ROUGE-L", "BLEU"} <= metrics.keys()
    assert "Host alone" in said and "Adapter" in said and "accuracy" not in said
    lines = said[said.index("next:") :].split("\n")
    assert [line.strip() for line in lines[1:] if line] == [
        f"mmadapter chat {folder}",
        f"mmadapter eval task=instruct run={folder}",
    ]
    again = run(finetune(tmp_path, texts, "optimizer.steps=3"))
    assert again["folder"] == folder and "is finished" in capsys.readouterr().out


def test_pictures_turn_the_shipped_encoder_on_and_the_text_only_run_learns_at_the_same_rate(pictures, tmp_path, capsys):
    summary = run(finetune(tmp_path, pictures, "optimizer.steps=2"))
    said, folder = capsys.readouterr().out, summary["folder"]
    assert "pictures: 9 of 9 samples have one; image encoder tiny" in said and "Text-only adapter" in said
    rates = [
        json.loads((place / "summary.json").read_text())["training"]["lr"]
        for place in (folder, folder / "comparison" / "text_only")
    ]
    assert rates == [0.005, 0.005]  # that of the projection, which the text-only run has not
    rows = [json.loads(line) for line in (folder / "eval/instruct/predictions.jsonl").read_text().splitlines()]
    assert rows[0]["image"].endswith(".png") and rows[0]["references"] == [f"Red {rows[0]['image'][-5]}."]


def test_pictures_without_an_encoder_for_the_host_are_refused_with_lines_to_copy(pictures, tmp_path):
    conf = finetune(tmp_path, pictures)
    conf.host.path = str(tmp_path)
    with pytest.raises(InputError, match="vision=dinov2_small.*\n.*vision=clip_vit_l14.*\n.*own.images=false"):
        decided_by_data(conf)
    with pytest.raises(InputError, match="adapter=v1_visual or adapter=v2.*data.sources.own.images=false"):
        decided_by_data(finetune(tmp_path, pictures, "adapter=lora"))
    textual, _ = decided_by_data(finetune(tmp_path, pictures, "adapter=lora", "data.sources.own.images=false"))
    assert not textual.vision.enabled and not textual.data.validation["own"].images


@pytest.mark.parametrize(
    "adapter,layers", [("v1_visual", "prompts 1 to 4"), ("v2", "prompts 2 to 4"), ("lora", "lora 1 to 4")]
)
def test_a_dry_run_says_what_the_data_are_and_what_memory_they_take(adapter, layers, pictures, tmp_path, capsys):
    text_alone = ["data.sources.own.images=false"] if adapter == "lora" else []
    facts = run(finetune(tmp_path, pictures, "dry_run=true", f"adapter={adapter}", *text_alone))
    said = capsys.readouterr().out
    assert (facts["batch_size"], facts["steps"]) == (1, 60) and not (tmp_path / "runs").exists()
    assert layers in said and "early_fusion 1 to 1" in said if adapter == "v2" else layers in said
    pictured = "0" if text_alone else "9"
    (row,) = (line.split() for line in said.splitlines() if "training, own" in line)
    assert row[2:4] == ["9", pictured] and int(row[4]) <= int(row[5]) <= int(row[6]) <= int(row[7])
    assert "cut to fit in host.max_tokens: nothing" in said and "task instruct asks 1" in said
    assert "float32 on cpu (here)" in said and "bfloat16 on a GPU" in said and "24 GB" in said
    here, there = facts["memory"], facts["memory_on_gpu"]
    assert here["activations"] == 2 * there["activations"] > 0 or adapter != "v1_visual"


def test_a_dry_run_without_data_says_so_and_one_with_damaged_data_fails(tmp_path, capsys):
    run(finetune(tmp_path, "null", "dry_run=true"))
    assert "data: not read" in capsys.readouterr().out
    with pytest.raises(InputError, match="data.path=.*nowhere.json: no such file"):
        decided_by_data(finetune(tmp_path, tmp_path / "nowhere.json", "dry_run=true"))
    (tmp_path / "bad.json").write_text('[{"instruction": 3')
    with pytest.raises(InputError, match="bad.json"):
        run(finetune(tmp_path, tmp_path / "bad.json", "dry_run=true"))


@pytest.mark.parametrize(
    ("items", "mend", "samples"),
    [
        # One of the eleven items is held out, so ten are trained on.
        ([{"question": f"{n}?", "choices": ["x", "y"], "answer": n % 11} for n in range(11)], "on_bad=skip", 1),
        ([{"question": f"{n}?", "answer": "x", "image": f"{n}.png"} for n in range(11)], "missing_image=no_image", 10),
        ([{"question": f"{n}?", "answer": "x", "image": "1.png"} for n in range(11)], "images=false", 10),
        ([{"question": f"{n}?", "answer": "x", "weight": 2} for n in range(11)], "ignore=[weight]", 10),
        (
            [{"prompt": f"{n}?", "chosen": "x", "rejected": "y"} for n in range(11)],
            "columns.answer=chosen data.sources.own.ignore=[rejected]",
            10,
        ),
    ],
)
def test_what_a_message_says_to_set_works_when_it_is_copied(items, mend, samples, tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(items))
    with pytest.raises(InputError) as told:
        decided_by_data(finetune(tmp_path, file))
    copied = f"data.sources.own.{mend}"
    assert copied in str(told.value)
    conf, _ = decided_by_data(finetune(tmp_path, file, *copied.split()))
    assert read_samples(conf.data, images=True, seed=0).count == samples
    tasks = [task_of(conf.tasks[name]).read() for name in conf.evaluate]
    assert [len(one) for one in tasks] == [1]


def test_one_item_is_trained_on_as_the_message_says(tmp_path):
    (tmp_path / "own.json").write_text('[{"question": "a", "answer": "b"}]')
    with pytest.raises(InputError) as told:
        decided_by_data(finetune(tmp_path, tmp_path / "own.json"))
    copied = "data.sources.own.split=all '~data.validation.own' 'evaluate=[]'"
    assert copied in str(told.value)
    conf, _ = decided_by_data(finetune(tmp_path, tmp_path / "own.json", *shlex.split(copied)))
    assert read_samples(conf.data, images=True, seed=0).count == 1


def test_the_validation_s_pictures_are_told_by_the_source_s_setting(tmp_path):
    file = tmp_path / "own.json"
    items = [{"question": f"{n}?", "answer": "x"} for n in range(10)]
    file.write_text(json.dumps({"train": items, "val": [{"question": "a", "answer": "b", "image": "gone.png"}]}))
    with pytest.raises(InputError, match="data.sources.own.missing_image=skip"):
        decided_by_data(finetune(tmp_path, file))


def test_no_path_and_two_files_name_data_path(tmp_path):
    with pytest.raises(InputError, match=r"Set data\.path=FILE$"):
        decided_by_data(finetune(tmp_path, "null"))
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match=r"Name one: data\.path=FILE, or call them"):
        decided_by_data(finetune(tmp_path, tmp_path))


def test_a_task_that_is_not_evaluated_is_not_resolved_and_other_data_are_told_what_fits(texts):
    dialogs = ("data=sharegpt", f"data.sources.dialogs.path={texts}", "host=tiny")
    conf = run_conf("experiment=scienceqa", *dialogs, "evaluate=[]")
    assert "scienceqa" not in conf.tasks
    with pytest.raises(InputError, match="experiment=sharegpt.*experiment=none.*experiment=finetune data.path="):
        run_conf("experiment=scienceqa", *dialogs)
    with pytest.raises(InputError, match="experiment=sharegpt.*experiment=none.*experiment=finetune data.path="):
        run_conf("experiment=alpaca", *dialogs)
    with pytest.raises(InputError, match="comparison.host.sources names questions.*\n.*experiment=sharegpt"):
        validate(run_conf(*dialogs))
    bare = run_conf("experiment=none", *dialogs, "vision=none", "adapter=v1")
    validate(bare)
    assert (bare.experiment, bare.evaluate, bare.comparison) == ("none", [], {})
