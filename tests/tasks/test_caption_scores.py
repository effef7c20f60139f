"""Caption scores: equal to the reference pipeline's to five digits, without Java, written nowhere but where asked."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmadapter.tasks.caption_scores import CAPTION_SCORES as SCORES
from mmadapter.tasks.caption_scores import caption_scores, java_folder, tokenized, why_not
from tests.tasks.reference_tokenizer import needs_java, reference_tokens

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "captions_made.json").read_text(encoding="utf-8"))
KNOWN = (0.57940, 0.40439, 0.27854, 0.19083, 0.39625, 0.59979)
VINVL = (0.77945, 0.62364, 0.48649, 0.37816, 0.59044, 1.26585)


def made():
    """References and captions by image id, as golden/captions_made.json holds them."""
    references = {image["id"]: [] for image in GOLDEN["annotations"]["images"]}
    for note in GOLDEN["annotations"]["annotations"]:
        references[note["image_id"]].append(note["caption"])
    return references, {entry["image_id"]: entry["caption"] for entry in GOLDEN["results"]}


def rounded(scores):
    return {name: round(value, 5) for name, value in scores.items()}


def test_made_captions_score_as_with_the_reference_pipeline():
    scores, missing = caption_scores(*made())
    assert rounded(scores) == {name: GOLDEN["scores"][name] for name in SCORES}
    assert list(scores) == list(SCORES) and set(missing) == {"METEOR", "SPICE"}


def test_the_order_of_the_captions_does_not_matter():
    references, captions = made()
    turned = dict(reversed(list(captions.items())))
    turned_scores, _ = caption_scores(references, turned)
    assert turned_scores == caption_scores(references, captions)[0]


@needs_java
def test_the_golden_scores_are_those_of_the_reference_tokens_here(tmp_path):
    references, captions = made()
    flat = [caption for told in references.values() for caption in told]
    assert [text for told in tokenized(references).values() for text in told] == reference_tokens(flat, tmp_path)
    order = [captions[id] for id in references]
    assert [text for (text,) in tokenized({id: [captions[id]] for id in references}).values()] == reference_tokens(
        order, tmp_path
    )


@needs_java
@pytest.mark.slow
def test_meteor_is_computed_where_java_is_and_spice_says_what_it_lacks():
    scores, missing = caption_scores(*made(), java_metrics=True)
    assert round(scores["METEOR"], 5) == GOLDEN["scores"]["METEOR"]
    if "SPICE" not in scores:
        assert "stanford-corenlp-3.6.0.jar" in missing["SPICE"] and "spice" in missing["SPICE"]


def test_without_java_the_java_scores_say_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    scores, missing = caption_scores(*made(), java_metrics=True)
    assert list(scores) == list(SCORES)
    assert all("Java is needed" in missing[name] for name in ("METEOR", "SPICE")) and why_not("METEOR")


def test_a_java_program_that_fails_does_not_cost_the_other_scores(monkeypatch):
    def broken(*_):
        raise BrokenPipeError("no memory")

    monkeypatch.setattr("mmadapter.tasks.caption_scores.why_not", lambda name: None)
    monkeypatch.setattr("mmadapter.tasks.caption_scores.java_score", broken)
    scores, missing = caption_scores(*made(), java_metrics=True)
    assert list(scores) == list(SCORES)
    assert missing["METEOR"] == missing["SPICE"] == "its program failed (BrokenPipeError: no memory)"


def test_a_java_that_dies_at_once_leaves_no_scorer_waiting(tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    told = "from tests.tasks.test_caption_scores import made; import mmadapter.tasks.caption_scores as c; "
    code = told + "s, missing = c.caption_scores(*made(), java_metrics=True); print(len(s), missing['METEOR'])"
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert done.stdout.startswith("6 its program failed")


def test_nothing_is_written_into_the_package(checkout):
    folder = java_folder("METEOR").parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}
    caption_scores(*made())
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def evaluated(checkout, out, results, annotations, *given):
    """metrics.json of eval.py on a results file, in a process where torch cannot be imported."""
    (out / "blocked").mkdir(parents=True)
    (out / "blocked" / "torch.py").write_text("raise ImportError('torch is not for scoring files')\n")
    command = [sys.executable, "eval.py", "task=coco_caption", f"predictions={results}"]
    command += [f"task.annotations={annotations}", f"output={out}", *given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(out / "blocked"), str(checkout)])}
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "metrics.json").read_text()), done.stdout


def test_the_command_scores_a_results_file_without_torch(checkout, tmp_path):
    for name, content in (("notes", GOLDEN["annotations"]), ("results", GOLDEN["results"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    metrics, said = evaluated(checkout, tmp_path / "out", tmp_path / "results.json", tmp_path / "notes.json")
    assert {name: round(metrics[name], 5) for name in SCORES} == {name: GOLDEN["scores"][name] for name in SCORES}
    assert metrics["images"] == 30 and metrics["split"] == "notes" and metrics["empty"] == 1
    assert "122.2" not in said  # the papers' scores are of Karpathy's test split
    for text in ("80.008  75.206", "METEOR and SPICE: not computed"):
        assert text in said


@pytest.mark.reference_data
@pytest.mark.parametrize(
    "results, annotations, images, wanted",
    [
        ("captions_val2014_fakecap_results.json", "captions_val2014.json", 1000, KNOWN),
        ("VinVL_base_val_results.json", "captions_karpathy_val.json", 5000, VINVL),
    ],
)
def test_published_captions_score_as_published(
    results, annotations, images, wanted, reference_data, checkout, tmp_path
):
    folder = reference_data / "coco_caption"
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    metrics, _ = evaluated(checkout, tmp_path / "out", folder / results, folder / "annotations" / annotations)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started < 30, "seconds of one core"
    assert tuple(round(metrics[name], 5) for name in SCORES) == wanted and metrics["images"] == images


@pytest.mark.reference_data
def test_a_split_list_chooses_the_images_and_a_part_is_no_split_score(reference_data, checkout, tmp_path):
    folder = reference_data / "coco_caption"
    files = folder / "VinVL_base_val_results.json", folder / "annotations" / "captions_karpathy_val.json"
    listed = f"task.split_list={folder / 'karpathy_val_images.txt'}"
    metrics, said = evaluated(checkout, tmp_path / "out", *files, listed)
    assert (round(metrics["CIDEr"], 5), metrics["split"]) == (1.26585, "karpathy_val_images")
    assert "karpathy_val_images, all 5000 images" in said
