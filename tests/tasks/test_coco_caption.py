"""task=coco_caption: annotations and results files checked, parts of a split labelled, a model's captions scored."""

import json

import pytest

from mmadapter.config import validate
from mmadapter.errors import InputError
from mmadapter.evaluation import run_evaluation
from mmadapter.reports.report import write_report
from mmadapter.tasks import coco_caption
from mmadapter.tasks.caption_scores import CAPTION_SCORES as SCORES
from mmadapter.tasks.coco_caption import read_annotations, read_results
from mmadapter.tasks.settings import CocoCaptionTaskSettings
from tests.config.composing import eval_conf
from tests.data.small_files import write_karpathy
from tests.tasks.asked import StandIn, evaluated, show

NOTES = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}],
    "annotations": [
        {"id": 10 * image + number, "image_id": image, "caption": f"a {animal} on a {place}"}
        for image, animal in ((1, "dog"), (2, "cat"), (3, "cow"))
        for number, place in enumerate(("hill", "mat"))
    ],
}
RESULTS = [{"image_id": id, "caption": f"a {animal} on a hill"} for id, animal in ((1, "dog"), (2, "cat"), (3, "cow"))]


class Parrot(StandIn):
    """Says what it is told, and notes the beams."""

    def __init__(self, says):
        super().__init__()
        self.says, self.beams = says, []

    def answer(self, samples, settings, seed=None, features=None, visual=None, at_once=None):
        self.beams.append(settings.beams)
        return [self.says for _ in samples]


@pytest.fixture
def files(tmp_path):
    """write(results, notes=...) -> (results file, annotations file)."""

    def write(results, notes=NOTES):
        (tmp_path / "results.json").write_text(json.dumps(results))
        (tmp_path / "captions_made.json").write_text(json.dumps(notes))
        return tmp_path / "results.json", tmp_path / "captions_made.json"

    return write


def scored(files, *given):
    results, notes = files
    conf = eval_conf("task=coco_caption", f"predictions={results}", f"task.annotations={notes}", *given)
    validate(conf)
    return run_evaluation(conf)


def test_a_whole_results_file_is_scored_in_any_order(files, tmp_path):
    metrics = scored(files(RESULTS[::-1]), f"output={tmp_path / 'out'}")
    assert metrics["BLEU-4"] == pytest.approx(1) and metrics["images"] == 3
    assert metrics["label"] == "captions_made, all 3 images" and set(SCORES) <= set(metrics)
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    first = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert first["output"] == "a dog on a hill" and len(first["references"]) == 2


@pytest.mark.parametrize(
    "results, said",
    [
        ([], ["results.json: holds an empty list"]),
        ({"1": "a"}, ["holds a JSON dict", "image_id"]),
        ([{"image_id": "1", "caption": "a"}], ["entry 0", "`image_id` is str '1'; it must be int"]),
        ([{"image_id": True, "caption": "a"}], ["entry 0", "bool"]),
        ([*RESULTS[:2], {"image_id": 3, "caption": None}], ["entry 2", "`caption` is null; it must be str"]),
        ([{"image_id": 1}], ["entry 0", "`caption` is missing"]),
        (["a dog"], ["entry 0", "expected an object, got str"]),
        ([*RESULTS, {"image_id": 9, "caption": "a"}], ["entry 3", "9 is not among the 3 images", "task.annotations"]),
        ([*RESULTS, RESULTS[0]], ["results.json: 1 image ids stand there more than once: 1"]),
        (RESULTS[:1], ["2 of the 3 images", "have no caption: 2, 3", "task.allow_subset=true"]),
    ],
)
def test_wrong_results_are_refused_with_file_and_entry(results, said, files):
    with pytest.raises(InputError) as error:
        scored(files(results))
    assert all(text in str(error.value) for text in said), str(error.value)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda notes: notes.pop("images"), "expected an object with a list `images`"),
        (lambda notes: notes["images"].append({"id": 1}), "image id 1 stands there twice"),
        (lambda notes: notes["images"].append({"id": 4}), "1 images have no caption: 4"),
        (lambda notes: notes["annotations"][3].update(image_id=7), r"annotations\[3\]: image_id 7 is not in"),
        (lambda notes: notes["annotations"][3].update(caption=None), r"annotations\[3\]: `caption` is null"),
    ],
)
def test_wrong_annotations_are_refused_with_file_and_entry(change, said, files):
    notes = json.loads(json.dumps(NOTES))
    change(notes)
    with pytest.raises(InputError, match=said):
        scored(files(RESULTS, notes))


def test_a_part_is_scored_only_when_asked_and_labelled_so(files, capsys):
    metrics = scored(files(RESULTS[:2]), "task.allow_subset=true")
    assert metrics["label"] == "subset: 2 of 3 images of captions_made"
    assert metrics["images"] == 2 and metrics["coverage"] == {"scored": 2, "split": 3, "complete": False}
    said = capsys.readouterr().out
    assert "subset: 2 of 3 images" in said and "[paper]" not in said


def test_a_split_list_chooses_the_images(files, tmp_path):
    listed = tmp_path / "karpathy_test_images.txt"
    listed.write_text("val2014/COCO_val2014_000000000003.jpg 3\n\nval2014/COCO_val2014_000000000001.jpg\n")
    results, notes = files([RESULTS[0], RESULTS[2]])
    metrics = scored((results, notes), f"task.split_list={listed}")
    assert metrics["images"] == 2 and metrics["split"] == "karpathy_test_images" and metrics["coverage"]["complete"]
    listed.write_text("9\n")
    with pytest.raises(InputError, match="1 of its 1 images are not in .*: 9"):
        read_annotations(notes, "test", listed)
    listed.write_text("1\nno image\n")
    with pytest.raises(InputError, match="line 2: 'no image' names no image id"):
        read_annotations(notes, "test", listed)
    with pytest.raises(InputError, match="none.txt: the list of images cannot be read .*Check task.split_list"):
        read_annotations(notes, "test", tmp_path / "none.txt")


def test_karpathys_file_gives_the_images_of_a_split(tmp_path):
    file = write_karpathy(tmp_path) / "dataset_coco.json"
    assert list(read_annotations(file, "test")[0]) == [4]
    assert list(read_annotations(file, "train")[0]) == [1, 2]
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 4, "caption": "x"}]))
    assert read_results(tmp_path / "results.json", *read_annotations(file, "test")) == {4: "x"}
    with pytest.raises(InputError, match="no split 'dev'; allowed: train, restval"):
        read_annotations(file, "dev")


def test_line_separators_in_a_caption_leave_the_others_alone(files):
    broken = [{**RESULTS[0], "caption": "a\rdog\u2028on\x0ca\x0bhill\n"}, *RESULTS[1:]]
    assert scored(files(broken))["CIDEr"] == scored(files(RESULTS))["CIDEr"]


def test_annotations_must_be_named(files):
    results, _ = files(RESULTS)
    with pytest.raises(InputError, match="task.annotations=FILE"):
        validate(eval_conf("task=coco_caption", f"predictions={results}"))
    with pytest.raises(InputError, match="go with predictions="):
        validate(eval_conf("task=coco_caption", "run=any", f"task.annotations={results}"))
    with pytest.raises(InputError, match="cannot be scored for task=instruct"):
        validate(eval_conf("task=instruct", f"predictions={results}"))


def caption_task(tmp_path, **changes):
    root = str(write_karpathy(tmp_path / "coco"))
    return CocoCaptionTaskSettings(root=root, split="train", batch_size=2, **changes)


def test_a_models_captions_are_scored_and_can_be_scored_again_from_the_file(tmp_path, capsys):
    task = caption_task(tmp_path)
    task.generation.beams = 3
    parrot = Parrot("a dog\u2028number 1")
    metrics = evaluated(parrot, task, tmp_path / "out")
    show(task, tmp_path / "out")
    assert parrot.beams == [3] and metrics["generation"]["beams"] == 3
    assert metrics["label"] == "train, all 2 images" and "train, all 2 images" in capsys.readouterr().out
    notes = tmp_path / "coco" / "dataset_coco.json"
    again = scored((tmp_path / "out" / "captions.json", notes), "task.split=train")
    assert [again[name] for name in SCORES] == [metrics[name] for name in SCORES]


def test_captions_are_scored_by_what_the_data_say_of_the_pictures(tmp_path):
    task = caption_task(tmp_path)
    file = tmp_path / "coco" / "dataset_coco.json"
    content = json.loads(file.read_text())
    content["images"][0]["attributes"] = {"animal": "dog", "coat": "dark brown"}
    content["images"][1]["attributes"] = {"animal": "do"}
    file.write_text(json.dumps(content))
    out = tmp_path / "run" / "eval" / "coco_caption"
    metrics = evaluated(Parrot("A Dog, dark-brown."), task, out)
    assert metrics["by_attribute"] == {
        "animal": {"named": 0.5, "captions": 2},  # "do" stands within a word only
        "coat": {"named": 1.0, "captions": 1},
    }
    page = write_report(tmp_path / "run").read_text()
    assert "By attribute" in page and "<td>animal</td><td>2</td><td>50.00</td>" in page
    assert "<td>coat</td><td>1</td><td>100.00</td>" in page


def test_bleu_of_references_with_fewer_words_is_a_dash_with_the_reason(files, tmp_path, capsys):
    notes = json.loads(json.dumps(NOTES))
    for one in notes["annotations"]:
        one["caption"] = "A red dog."
    metrics = scored(files([{**one, "caption": "a red dog"} for one in RESULTS], notes), f"output={tmp_path / 'out'}")
    said = capsys.readouterr().out
    assert metrics["BLEU-3"] == pytest.approx(1) and metrics["BLEU-4"] < 0.1
    assert metrics["without_meaning"] == ["BLEU-4"]
    assert "–" in said and "BLEU-4: counts longer runs of words than any reference has." in said
    assert {"BLEU-4", "CIDEr"} & coco_caption.CocoCaption.values(metrics).keys() == {"CIDEr"}
    assert "without_meaning" not in scored(files(RESULTS))


def test_a_limited_look_prints_captions_and_no_scores(tmp_path, capsys):
    task = caption_task(tmp_path, limit=1)
    metrics = evaluated(Parrot("a dog"), task, tmp_path / "out")
    show(task, tmp_path / "out")
    assert not set(SCORES) & set(metrics) and metrics["label"] == "subset: 1 of 2 images of train"
    said = capsys.readouterr().out
    assert "Not scored: 1 of 2 images" in said and "BLEU" not in said and "a dog" in said
    task.allow_subset = True
    asked = evaluated(Parrot("a dog"), task, tmp_path / "out")
    assert set(SCORES) <= set(asked) and not asked["coverage"]["complete"]


def test_the_report_shows_scores_references_and_the_papers_where_all_of_karpathys_test_split_is_scored(
    tmp_path, monkeypatch
):
    task = caption_task(tmp_path)
    evaluated(Parrot("a <dog>"), task, tmp_path / "run" / "eval" / "coco_caption")
    assert "122.2" not in write_report(tmp_path / "run").read_text()
    monkeypatch.setattr(coco_caption, "KARPATHY_TEST", 2)
    assert "122.2" not in write_report(tmp_path / "run").read_text(), "as many, but of another split"
    file = tmp_path / "run" / "eval" / "coco_caption" / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "split": "test"}))
    page = write_report(tmp_path / "run").read_text()
    for text in (
        "Captions of test pictures",
        "train, all 2 images",
        "122.2",
        "145.3",
        "0.6M",
        "issue 68",
        "a &lt;dog&gt;",
    ):
        assert text in page
    assert "A dog number 1." in page and "not computed" in page
    task.limit = 1
    evaluated(Parrot("a"), task, tmp_path / "run" / "eval" / "coco_caption")
    page = write_report(tmp_path / "run").read_text()
    assert "Not scored: 1 of 2 images" in page and "122.2" not in page
