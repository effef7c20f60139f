"""Every experiment runs, with all its variants and comparisons, here on random tiny models for a step or so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.shapes import make_world
from mmadapter.config import RunConf, validate
from tests.config.composing import choices, run_conf
from tests.training.tiny_run import SIZES, save_deep_host, save_dialogs, save_inputs, shortened

# Comparisons; all other experiments have none.
PARTS = {name: {"host", "text_only"} for name in ("quickstart", "finetune")} | {"real_quickstart": {"host"}}
EXAMPLES = {"interference": "interference", "interference_told": "interference"}  # experiment -> folder in examples/


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    save_deep_host(folder)
    make_world(folder / "interference", sizes=SIZES, interference=True)
    save_dialogs(folder / "dialogs")
    return folder


def one_step(experiment: str, inputs: Path, runs: Path) -> RunConf:
    """The experiment's settings with what a user gives, made short: four samples are one step and one epoch."""
    chosen = [f"experiment={experiment}"]
    if experiment in EXAMPLES:  # --config-dir
        chosen.append(f"hydra.searchpath=[file://{Path(__file__).parents[1] / 'examples' / EXAMPLES[experiment]}]")
    composed = run_conf(*chosen)
    adapted = [variant[0] for variant in composed.variants.values() if "adapter.prompts.layers=32" in variant]
    overrides = [
        f"runs_root={runs}",
        f"host.path={inputs / ('deep' if adapted else 'host')}",
        *(["adapter.prompts.layers=2"] if "prompts" in composed.adapter.methods else []),
    ]
    if composed.vision.enabled is not False:
        overrides += [f"vision.model={inputs / 'clip'}", "vision.layers=[1,2]"]
    if "alpaca" in composed.data.sources:
        overrides.append(f"data.sources.alpaca.path={inputs / 'world' / 'alpaca.json'}")
    elif "dialogs" in composed.data.sources:
        name = composed.data.sources["dialogs"].reader
        overrides += [f"data.sources.dialogs.path={inputs / 'dialogs' / name}.json", "host.max_tokens=64"]
        overrides += [f"data.root={inputs / 'dialogs'}"] if name == "llava" else []
    elif composed.data.made == "interference":
        overrides.append(f"data.root={inputs / 'interference'}")
    elif "own" in composed.data.sources:
        overrides.append(f"data.path={inputs / 'world' / 'coco'}")
    else:
        own = "" if composed.data.made else "coco" if "captions" in composed.data.sources else "scienceqa"
        overrides.append(f"data.root={inputs / 'world' / own}")
    if "instructions" in composed.data.sources and not composed.data.made:
        overrides.append(f"data.sources.instructions.path={inputs / 'world' / 'alpaca.json'}")
    if getattr(composed.adapter.methods.get("projection"), "kind", None) == "query_transformer":
        overrides += ["vision.layers=[2]", "adapter.projection.heads=4", "adapter.projection.hidden=16"]
    return run_conf(*chosen, *shortened(composed), *overrides)


@pytest.mark.parametrize("experiment", [*choices("experiment"), *EXAMPLES])
def test_every_experiment_runs(experiment, inputs, tmp_path):
    from mmadapter.training.run import run

    conf = one_step(experiment, inputs, tmp_path)
    validate(conf)
    run(conf)
    folder = next(path for path in tmp_path.iterdir() if path.name.startswith(f"{experiment}-"))
    trained = [folder / "variants" / name for name in conf.variants] or [folder]
    trained += [folder / "comparison" / name for name, item in conf.comparison.items() if item.train]
    assert set(conf.comparison) == PARTS.get(experiment, set())
    for part in trained:
        card = json.loads((part / "adapter" / "adapter.json").read_text())
        assert card and (part / "metrics.jsonl").stat().st_size > 0
        for task in (name for name in conf.evaluate if name == "scienceqa" or part == folder):
            assert (part / "eval" / task / "metrics.json").is_file()
    assert (folder / "finished.json").is_file()
