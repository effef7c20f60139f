"""A run whose numbers are no longer finite comes to its end; infinite settings are refused; secrets are not written."""

from __future__ import annotations

import json

import pytest
import torch

from mmadapter.config import validate
from mmadapter.errors import InputError
from mmadapter.model import AdaptedModel
from mmadapter.reports.report import write_report
from mmadapter.training.run import run
from tests.config.composing import run_conf
from tests.training.tiny_run import save_inputs, tiny_conf

SECRETS = {"HF_TOKEN": "hf_sEcReToNe", "WANDB_API_KEY": "wandbsecrettwo", "AWS_SECRET_ACCESS_KEY": "awsthirdsecret"}


@pytest.mark.parametrize(
    "word, told",
    [
        ("optimizer.base_lr=inf", "optimizer.base_lr=inf: must be a finite number"),
        ("optimizer.weight_decay=inf", "optimizer.weight_decay=inf: must be a finite number"),
        ("optimizer.epochs=inf", "optimizer.epochs=inf: must be a finite number"),
        ("optimizer.base_lr=1e400", "must be a finite number"),
        ("optimizer.base_lr=nan", "optimizer.base_lr=nan: must be above 0"),
        ("tasks.scienceqa.generation.temperature=inf", "temperature=inf: must be a finite number"),
        ("tasks.scienceqa.generation.temperature=nan", "temperature=nan: must be at least 0"),
        ("optimizer.batch_size=1000000000000", "batch_size=1000000000000: must be at most 1,000,000"),
        (f"seed={2**63}", f"seed={2**63}: must be at most 9,223,372,036,854,775,807"),
        (f"seed={'9' * 4000}", "seed=a number of some 3986 digits: must be at most"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(word, told):
    with pytest.raises(InputError, match=told):
        validate(run_conf(word))


def test_the_largest_seed_is_a_seed():
    validate(run_conf(f"seed={2**63 - 1}"))


@pytest.mark.parametrize("name", ["../../evil", "a/b", ".hidden", ""])
def test_the_name_of_a_variant_is_a_folder_in_the_run(name):
    conf = run_conf()
    conf.variants = {name: ["seed=1"]}
    with pytest.raises(InputError, match="it names a folder in variants/"):
        validate(conf)


def test_a_run_with_gates_that_are_not_finite_is_finished_and_shown(tmp_path, monkeypatch):
    """And nothing that it writes has a secret of the environment in it."""
    torch.set_num_threads(1)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    usual = AdaptedModel.gates
    monkeypatch.setattr(AdaptedModel, "gates", lambda self: usual(self) * float("nan"))
    conf = tiny_conf(save_inputs(tmp_path), tmp_path / "runs", "run=mine", "optimizer.epochs=1", "evaluate=[]")
    conf.comparison = {}
    folder = run(conf)["folder"]
    page = write_report(folder).read_text()
    assert "not finite" in page and (folder / "finished.json").is_file()
    gates = [json.loads(line).get("gates") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [[None] * 4] * 2 in gates
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 10 and not any(value.encode() in content for content in written for value in SECRETS.values())
