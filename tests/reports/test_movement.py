"""The report of a joint run: loss by source, movement by group."""

import re

from mmadapter.reports.page import ReportedRun
from mmadapter.reports.report import group_colours, movement_records
from tests.reports.test_report import lines, page_of, put


def moved(visual, instruction, start=10.0):
    distances = {"visual": visual, "instruction": instruction}
    return {
        name: {"distance": distance, "relative": distance / start if start and distance is not None else None}
        for name, distance in distances.items()
    }


def add_joint_training(folder, start=10.0, broken=False):
    records = [
        {"kind": "train", "step": step, "loss": 2 / step, "lr": 0.01, "seconds": 0.1 * step,
         "loss_by_source": {"captions": 2 / step, "instructions": 3 / step},
         **({"movement": moved(0.1 * step, 0.02 * step, start)} if step % 10 == 0 else {})}
        for step in range(1, 31)
    ]  # fmt: skip
    records.append(
        {"kind": "validation", "step": 15, "loss": 0.25, "loss_by_source": {"captions": 0.2, "instructions": 0.3},
         "movement": moved(None if broken else 1.5, 0.3, start)}
    )  # fmt: skip
    put(folder / "metrics.jsonl", lines(records))
    row = {"role": "prompt", "tensors": 2, "parameters": 12, "share": 0.01, "lr": 0.01, "weight_decay": 0.02}
    groups = {"visual": "captions", "instruction": "instructions"}
    put(folder / "trainable.json", [{"group": name, "sources": source, **row} for name, source in groups.items()])


def cells(page, group):
    row = re.search(rf"<tr><td>{group}</td><td class=\"text\">([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", page)
    return row.groups()


def test_each_group_has_a_curve_and_a_row_with_its_sources(tmp_path):
    add_joint_training(tmp_path)
    page = page_of(tmp_path)
    assert "Distance from the start, % of the start&#39;s norm" in page
    assert cells(page, "visual") == ("captions", "3", "30 %")
    assert cells(page, "instruction") == ("instructions", "0.6", "6 %")
    assert [record["step"] for record in movement_records(ReportedRun(tmp_path))] == [10, 15, 20, 30]


def test_a_group_has_the_colour_of_the_source_that_it_learns_from(tmp_path):
    add_joint_training(tmp_path)
    run = ReportedRun(tmp_path)
    assert group_colours(run, ["instruction", "visual"]) == {"visual": 1, "instruction": 2}
    for row in run.trainable:
        row["sources"] = "all"
    assert group_colours(run, ["instruction", "visual"]) == {"instruction": 1, "visual": 2}


def test_losses_are_drawn_by_source_in_training_and_validation(tmp_path):
    add_joint_training(tmp_path)
    page = page_of(tmp_path)
    for name in ("training, captions", "training, instructions", "validation, captions", "validation, instructions"):
        assert name in page


def test_a_start_at_zero_is_measured_in_distances(tmp_path):
    add_joint_training(tmp_path, start=0.0)
    page = page_of(tmp_path)
    assert "% of the start" not in page and cells(page, "visual") == ("captions", "3", "n/a")


def test_a_distance_that_was_not_finite_leaves_its_point_out(tmp_path):
    add_joint_training(tmp_path, broken=True)
    page_of(tmp_path)
    assert [record["step"] for record in movement_records(ReportedRun(tmp_path))] == [10, 20, 30]


def test_a_run_without_movement_has_no_such_section(tmp_path):
    put(tmp_path / "metrics.jsonl", lines([{"kind": "train", "step": 1, "loss": 1.0, "lr": 0.1}]))
    assert "<h2>Movement" not in page_of(tmp_path)
