"""A sweep's page: whole, escaped, with links that lead somewhere, for every kind of sweep."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest

from mmadapter.reports.sweep import score_plots
from mmadapter.runs.sweep import note_jobs, read_results
from mmadapter.sweeps.results import sweep_text, write_sweep
from tests.made_runs import made_run, made_sweep
from tests.sweeps.sweep_output import GRID, page_of, rows_of


def test_a_page_shows_map_table_states_and_curves(tmp_path):
    folder = made_sweep(tmp_path, GRID)
    write_sweep(folder)
    page = page_of(folder)
    assert "rows: optimizer.base_lr, columns: adapter.prompts.layers" in page.text
    assert "never started" in page.text and "Out of memory" in page.text and "2 finished, 1 failed" in page.text
    assert "Training loss per token" in page.text
    assert page.links == ["../../made-0/report.html", "../../made-1/report.html"], "self-contained but for the reports"


def test_reports_are_linked_wherever_runs_and_sweep_are(tmp_path):
    folder = made_sweep(tmp_path, {"seed=0": ("", 0), "seed=1": ("", 0)})
    beside, elsewhere = tmp_path / "50% done?" / "a run", tmp_path / "sweeps" / "run#1"
    for number, run in enumerate((beside, elsewhere)):
        made_run(run, "finished")
        (run / "report.html").write_text("here")
        note_jobs(folder, {number: {"run": str(run)}})
    write_sweep(folder)
    assert [(folder / unquote(link)).read_text() for link in page_of(folder).links] == ["here", "here"]
    assert page_of(folder).links == ["../../50%25%20done%3F/a%20run/report.html", "../run%231/report.html"]
    moved = tmp_path.with_name(f"{tmp_path.name} elsewhere")
    write_sweep(folder.rename(moved))
    assert [(moved / unquote(link)).read_text() for link in page_of(moved).links] == ["here", "here"]


def test_dots_of_seeds_are_not_joined(tmp_path):
    def lines(name: str, key: str) -> int:
        jobs = {f"{key}={number}": ("finished", 40 + number) for number in range(3)}
        return score_plots(read_results(made_sweep(tmp_path / name, jobs)), [key])[0].count("<polyline")

    assert (lines("seeds", "seed"), lines("layers", "adapter.prompts.layers")) == (0, 1)


def test_text_from_settings_is_escaped(tmp_path):
    folder = made_sweep(tmp_path, {"run=<script>": ("finished", 1), "run=b": ("finished", 2)})
    write_sweep(folder)
    assert "<script>" not in (folder / "sweep.html").read_text().replace("<script>\n", "")


def test_of_equal_jobs_the_lower_validation_loss_is_the_best_and_else_none(tmp_path):
    jobs = {f"adapter.prompts.layers={number}": ("finished", 0) for number in (1, 2, 4)}
    folder = made_sweep(tmp_path, jobs)
    assert "jobs 0, 1, 2: none is the best" in sweep_text(write_sweep(folder))
    page = page_of(folder)
    assert "3 jobs are equal" in page.text and "of the best job" not in page.text
    with open(tmp_path / "made-1" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"kind": "validation", "step": 40, "loss": 1.9}\n')
    sweep = write_sweep(folder)
    assert sweep.best.number == 1 and "job 1 adapter.prompts.layers=2" in sweep_text(sweep)


def test_a_narrow_screen_shows_the_settings_and_the_metric(tmp_path):
    folder = made_sweep(tmp_path, GRID)
    write_sweep(folder)
    head = re.search(r'data jobs">\s*<thead><tr>(.*?)</tr>', (folder / "sweep.html").read_text())[1]
    shown = [name for kind, name in re.findall(r"<th([^>]*)><button>(.*?)</button>", head) if "minor" not in kind]
    assert [name.replace("<wbr>", "") for name in shown] == [
        "job", "optimizer.base_lr", "adapter.prompts.layers", "scienceqa.Avg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "jobs",
    [
        {},
        {"seed=0": ("finished", 50)},
        {f"seed={number}": ("failed", 0) for number in range(4)},
        {f"seed={number}": ("", 0) for number in range(3)},
        {
            f"adapter.prompts.layers={number} optimizer=v{number % 2} seed={number % 3}": ("finished", number)
            for number in range(60)
        },
        {f"optimizer.base_lr={10.0**-number}": ("finished", 50) for number in range(5)},
        {"~comparison": ("finished", 50), "host=x": ("finished", 51)},
    ],
    ids=["no job", "one job", "all failed", "none started", "sixty", "equal scores", "removed key"],
)
def test_every_kind_of_sweep_has_a_page(tmp_path, jobs):
    folder = made_sweep(tmp_path, jobs)
    assert "sweep.html" in sweep_text(write_sweep(folder))
    page_of(folder)
    assert len(rows_of(folder)) == len(jobs)
