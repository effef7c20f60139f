"""The files around the package: citation, image, workflow and notebook say what is so."""

from __future__ import annotations

import configparser
import json
import os
import re
from pathlib import Path

import pytest
import yaml

import mmadapter

CHECKOUT = Path(__file__).parents[1]
NOTEBOOK = CHECKOUT / "notebooks" / "quickstart.ipynb"


def test_the_citation_has_this_version_and_both_papers():
    told = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert told["version"] == mmadapter.__version__ and told["license"] == "Apache-2.0"
    papers = [one["identifiers"][0]["value"] for one in told["references"]]
    assert papers == ["arXiv:2303.16199", "arXiv:2304.15010"]
    assert [len(one["authors"]) for one in told["references"]] == [8, 12]


def test_the_workflow_tests_the_pythons_that_are_supported():
    workflow = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "tests.yml").read_text())
    job = workflow["jobs"]["tests"]
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert all(word in commands for word in ("ruff check", "mypy", "pytest", "whl/cpu"))
    options = configparser.ConfigParser()
    options.read(CHECKOUT / "setup.cfg")
    assert options["options"]["python_requires"] == f">={job['strategy']['matrix']['python'][0]}"


def test_the_help_of_eval_names_every_task():
    help_text = yaml.safe_load((CHECKOUT / "conf" / "eval.yaml").read_text())["hydra"]["help"]["template"]
    named = re.search(r"Tasks: ([\w, ]+)\.", help_text)
    assert named and named[1].split(", ") == sorted(file.stem for file in (CHECKOUT / "conf" / "task").glob("*.yaml"))


def test_the_image_leaves_out_nothing_that_the_wheel_needs():
    ignored = {line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if not line.startswith("#")}
    assert ignored.isdisjoint(
        {"mmadapter", "conf", "data_prep", "setup.cfg", "setup.py", "pyproject.toml", "README.md"}
    )
    image = (CHECKOUT / "Dockerfile").read_text()
    assert re.search(r"^USER [1-9]", image, re.MULTILINE) and 'ENTRYPOINT ["mmadapter"]' in image


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    book = nbformat.read(NOTEBOOK, 4)
    client = nbclient.NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    pages = [one["data"]["text/html"] for one in shown if "text/html" in one.get("data", {})]
    assert "Adapter with images" in pages[0] and "&lt;svg" in pages[1]
    assert any("image/png" in one.get("data", {}) for one in shown)
    said = "".join(one["text"] for one in shown if one["output_type"] == "stream")
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file() and "frozen parameters" in said
