"""report.html on made run folders: self-contained, escaped, and whole or partial as the folder is."""

import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmadapter.reports import page as pages
from mmadapter.reports.charts import Scale, smoothed
from mmadapter.reports.report import write_report

COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
VOID = {"meta", "img", "br", "hr", "link", "input"}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def add_training(folder, steps=30, offset=0.0):
    gates = [[0.1, -0.2], [0.0, 0.3]]
    records = [
        {"kind": "train", "step": step, "loss": 2 / step + offset, "lr": 0.01, "seconds": 0.1 * step,
         "loss_by_source": {"questions": 2 / step + offset, "captions": 3 / step},
         **({"gates": gates} if step % 10 == 0 else {})}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    records.append({"kind": "validation", "step": steps, "loss": 0.25 + offset, "perplexity": 1.3})
    put(folder / "metrics.jsonl", lines(records))
    row = {"group": "adapter", "role": "prompt", "tensors": 2, "parameters": 1234567, "share": 0.01, "lr": 0.01}
    put(folder / "trainable.json", [{**row, "weight_decay": 0.02, "sources": "all"}])


def add_scores(folder, average, image=None):
    accuracy = dict.fromkeys(COLUMNS, average) | {"SOC": None}
    metrics = {
        "task": "scienceqa", "split": "test", "accuracy": accuracy, "counts": dict.fromkeys(COLUMNS, 2),
        "coverage": {"scored": 2, "split": 9, "complete": False}, "unanswered": 1, "guessed": 0,
        "label": "subset: 2 of the 9 questions of test, not the test score", "fallback": "none", "by_topic": {},
    }  # fmt: skip
    row = {
        "id": "7", "question": "Is <script>alert(1)</script> & <b>this</b> \"safe\"?", "choices": ["<i>yes</i>", "no"],
        "answer": 1, "output": "The answer is <B>.", "prediction": None, "correct": False, "image": image,
        "subject": "natural science", "grade": "grade2", "topic": "maps", "hint": "",
    }  # fmt: skip
    put(folder / "eval" / "scienceqa" / "metrics.json", metrics)
    right = {**row, "id": "8", "question": "Which?", "prediction": 1, "correct": True, "output": "The answer is B."}
    put(folder / "eval" / "scienceqa" / "predictions.jsonl", lines([row, right]))


@pytest.fixture
def run(tmp_path):
    """A finished run with images, comparison runs and captions."""
    folder = tmp_path / "quickstart-1"
    picture = folder / "picture.png"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(picture)
    put(folder / "config.yaml", "experiment: quickstart\nvision:\n  enabled: true\ndata:\n  made: shapes\n")
    put(folder / "versions.json", {"mmadapter": "0.1.0", "packages": {"torch": "2.15"}, "git": None})
    put(folder / "summary.json", {"wall_seconds": 192, "peak": {"host_bytes": 1_500_000_000}})
    add_training(folder)
    add_scores(folder, 91.5, str(picture))
    for name, average in (("text_only", 41.25), ("host", 33.5)):
        put(folder / "comparison" / name / "config.yaml", "vision: {enabled: false}\n")
        add_scores(folder / "comparison" / name, average)
    put(folder / "eval" / "coco_caption" / "metrics.json", {"task": "coco_caption"})
    caption = {"id": "1", "output": "a red <field>", "references": ["red"], "image": str(picture)}
    put(folder / "eval" / "coco_caption" / "predictions.jsonl", lines([caption]))
    return folder


def test_peak_memory_says_of_how_many_processes(run):
    put(run / "summary.json", {"peak": {"host_bytes": 2e9, "processes": [{"host_bytes": 1e9}, {"host_bytes": 2e9}]}})
    write_report(run)
    assert "of the largest of 2 processes" in (run / "report.html").read_text()


class Balance(HTMLParser):
    """Checks that every element is closed in turn."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(folder):
    page = write_report(folder).read_text()
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    return page


def test_the_page_needs_no_network(run):
    page = page_of(run)
    assert "http:" not in page and "https:" not in page and "//" not in re.sub(r"base64,[^\"]*", "", page)
    assert not re.search(r"<link|@import|<script src|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)


def test_texts_from_data_are_escaped(run):
    page = page_of(run)
    assert "<script>alert" not in page and "<i>yes" not in page and "a red <field>" not in page
    assert "Is &lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;this" in page


def test_scores_stand_beside_the_compared_runs_and_the_papers_where_these_are_of_the_same_questions(run):
    page = page_of(run)
    assert "33.50" in page and "LLaMA-Adapter (text)" not in page
    file = run / "eval" / "scienceqa" / "metrics.json"
    put(file, {**json.loads(file.read_text()), "official": True})
    page = page_of(run)
    order = [page.index(text) for text in ("Host alone", "Text-only adapter", "Adapter with images")]
    assert order == sorted(order)
    for text in ("33.50", "41.25", "91.50", "LLaMA-Adapter (text)", "85.19", "subset: 2 of the 9 questions"):
        assert text in page


def test_curves_table_gallery_and_facts_are_there(run):
    page = page_of(run)
    for text in (
        "finished", "Loss per token", "Learning rate", "adapted layer 2", "1,234,567", "3 min 12 s", "1.5 GB",
        "✓ right", "✗ wrong", "config.yaml", "prefers-color-scheme: dark", "@media print", "training, captions",
    ):  # fmt: skip
        assert text in page


def test_an_unfinished_run_has_a_report_of_what_there_is(tmp_path):
    put(tmp_path / "config.yaml", "experiment: alpaca\n")
    page = page_of(tmp_path)
    assert "unfinished run" in page and "ScienceQA average" not in page
    add_training(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "ste')
    page = page_of(tmp_path)
    assert "Loss per token" in page and "Gates" in page and "Captions of test pictures" not in page


def test_an_empty_folder_and_broken_numbers_do_not_stop_the_report(tmp_path):
    page_of(tmp_path)
    broken = [{"kind": "train", "step": step, "loss": float("nan"), "lr": 0.0, "loss_by_source": {}} for step in (1, 2)]
    put(tmp_path / "metrics.jsonl", lines(broken))
    page_of(tmp_path)


def test_a_picture_that_is_gone_leaves_the_question(run):
    (run / "picture.png").unlink()
    page = page_of(run)
    assert "Which?" in page and "picture not found" in page


def test_variants_are_compared_on_one_page(tmp_path):
    put(tmp_path / "config.yaml", "experiment: ablation_init\nvariants: {zero_init: [], joint: []}\n")
    for name, offset in (("zero_init", 0.0), ("joint", 0.5)):
        add_training(tmp_path / "variants" / name, offset=offset)
        add_scores(tmp_path / "variants" / name, 80 - 40 * offset)
    page = page_of(tmp_path)
    for text in ("zero_init", "joint", "80.00", "60.00", "0.7500"):
        assert text in page
    assert "40.77" not in page  # the paper's numbers are of another split
    whole = {"scored": 4241, "split": 4241, "complete": True}
    for file in tmp_path.glob("variants/*/eval/scienceqa/metrics.json"):
        put(file, {**json.loads(file.read_text()), "split": "val", "coverage": whole})
    page = page_of(tmp_path)
    assert "40.77" in page and "83.85" in page
    assert page.index("<td>zero_init") < page.index("<td>joint")  # as the experiment lists them
    assert page.count("<polyline") == 6  # two training losses over their raw values, two of validation


def test_a_variant_that_has_not_begun_is_a_row_and_names_are_escaped(tmp_path):
    put(tmp_path / "config.yaml", "experiment: mine\n")
    add_training(tmp_path / "variants" / "one <run>")
    (tmp_path / "variants" / "empty").mkdir()
    page = page_of(tmp_path)
    assert "<td>one &lt;run&gt;</td>" in page
    row = re.search(r"<tr><td>empty</td>(.*?)</tr>", page)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row[1]) == ["0", "–", "–", "–", "–"]


def test_a_task_of_a_name_of_its_own_has_a_section_and_a_quick_look_has_none(tmp_path):
    put(tmp_path / "config.yaml", "tasks: {instruct_with_picture: {}}\n")
    for name, instruction in (("instruct_with_picture", "Say red."), ("instruct-first-20", "Say blue.")):
        put(tmp_path / "eval" / name / "metrics.json", {"task": "instruct"})
        row = {"instruction": instruction, "output": "red", "reference": "red", "exact": True}
        put(tmp_path / "eval" / name / "predictions.jsonl", lines([row]))
    page = page_of(tmp_path)
    assert "<h2>Answers to instructions: instruct_with_picture</h2>" in page and "Say red." in page
    assert "Say blue." not in page


def test_gates_that_were_not_finite_leave_the_report_whole(tmp_path):
    records = [{"kind": "train", "step": step, "loss": 1.0, "lr": 0.1, "gates": [[None, 0.5]]} for step in (1, 2)]
    put(tmp_path / "metrics.jsonl", lines(records))
    assert "adapted layer 1" in page_of(tmp_path)


def test_smoothing_does_not_lag_behind_a_straight_line():
    line = [(step, 3.0 * step) for step in range(100)]
    assert [point for point in smoothed(line)[10:-10]] == [pytest.approx(point) for point in line[10:-10]]
    assert smoothed([]) == [] and smoothed([(1, 5.0)]) == [(1, 5.0)]


def test_axes_have_round_ticks():
    assert Scale(0, 97, 0, 1).ticks() == [0, 20, 40, 60, 80]
    assert Scale(0.09, 5, 0, 1, log=True).ticks() == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5])


def add_pictures(folder, picture, **changes):
    entry = {
        "id": "7", "question": "What <i>colour</i>?", "image": str(picture), "answer": "<b>red</b>",
        "other": {"image": str(picture), "answer": "blue", "truth": "blue"},
        "hidden": [[-2.0, 0.5], [-1.0, 0.0]], "attention": [[0.25, 0.75]],
    }  # fmt: skip
    put(folder / "eval" / "scienceqa" / "pictures.json", [{**entry, **changes}])


def test_the_gallery_stands_first_with_what_the_picture_does_and_links_to_all_predictions(run):
    add_pictures(run, run / "picture.png")
    page = page_of(run)
    order = ["<h2>Test questions", "what the picture does", "<h2>ScienceQA: scores", "<h2>Training", "<h2>Gates"]
    assert [page.index(title) for title in order] == sorted(page.index(title) for title in order)
    assert 'href="eval/scienceqa/predictions.jsonl"' in page
    assert (
        "another picture; true: blue" in page and "by up to 2.00 nats" in page and "the answer is the same" not in page
    )
    veils = [float(found) for found in re.findall(r'class="veil"[^>]*fill-opacity="([\d.]+)"', page)]
    assert veils == [0.0, 0.88, 0.44, 0.88], "what matters most is seen whole, what does not matter is veiled"
    assert "layer 1, token 2: +0.7500" in page
    assert "<b>red</b>" not in page and "What <i>colour" not in page


def test_an_answer_that_does_not_rest_on_the_picture_is_said_to_do_so(run):
    add_pictures(run, run / "picture.png", hidden=[[0.001, -0.002]], attention=None, other=None)
    page = page_of(run)
    assert "changes less than 0.01 nats" in page and "<figcaption>another picture" not in page


def test_right_and_wrong_answers_can_be_chosen(run):
    page = page_of(run)
    assert 'data-show="is-right">right 1' in page and 'data-show="is-wrong">wrong 1' in page
    assert page.count('class="card is-right"') == 1 and page.count('class="card is-wrong"') == 1


def test_small_pictures_keep_their_pixels_and_large_ones_are_shrunk(run, tmp_path):
    page = page_of(run)
    assert page.count('class="small"') == page.count("<img"), "40 x 30 pixels"
    Image.new("RGB", (900, 600), "red").save(run / "picture.png")
    pages.picture.cache_clear()
    assert 'class="small"' not in page_of(run)


def test_answers_while_it_learned_are_those_of_the_start_early_late_and_the_end(tmp_path):
    def said(step):
        one = {"sample": "4", "task": "t", "image": None, "question": "Which <b>?", "answer": f"answer {step}"}
        return {"kind": "answers", "step": step, "samples": [{**one, "references": ["red"], "right": step > 5}]}

    put(tmp_path / "metrics.jsonl", lines([said(step) for step in range(0, 11)]))
    page = page_of(tmp_path)
    assert re.findall(r"answer (\d+)", page) == ["0", "1", "5", "10"] and "<dt>true</dt><dd>red</dd>" in page
    assert "Which &lt;b&gt;?" in page and page.count('class="wrong">✗') == 3 and page.count('class="right">✓') == 1
    put(tmp_path / "metrics.jsonl", lines([said(0)]))
    assert re.findall(r"answer (\d+)", page_of(tmp_path)) == ["0"]


def test_losses_stand_against_steps_time_and_tokens(tmp_path):
    records = [
        {"kind": "train", "step": step, "loss": 2 / step, "seconds": 100.0 * step, "supervised_tokens": 50,
         "tokens_per_s": 9.0, "grad_norm": 1.0, "memory": {"host_bytes": 2e9}}
        for step in range(1, 5)
    ]  # fmt: skip
    put(tmp_path / "metrics.jsonl", lines([*records, {"kind": "validation", "step": 4, "loss": 0.5}]))
    page = page_of(tmp_path)
    charts = [json.loads(unescape(found)) for found in re.findall(r'data-chart="([^"]*)"', page)]
    last = {one["x"]: [line["points"][-1] for line in one["lines"]] for one in charts if len(one["lines"]) == 2}
    assert last["step"] == [[4.0, 0.5], [4.0, 0.5]]
    assert last["training time, minutes"][0][0] == pytest.approx(400 / 60) and last["supervised tokens"][1] == [
        200,
        0.5,
    ]
    for label in ("Gradient norm", "Supervised tokens a second", "Peak memory so far, GB"):
        assert label in page


def test_losses_that_were_not_finite_are_counted(tmp_path):
    records = [{"kind": "train", "step": step, "loss": None if step == 2 else 1.0, "lr": 0.1} for step in (1, 2, 3)]
    put(tmp_path / "metrics.jsonl", lines(records))
    assert "The loss of 1 of 3 steps was not finite, first at step 2." in page_of(tmp_path)


def test_a_narrow_screen_shows_the_main_scores(run):
    head = re.search(r"<thead><tr><th>accuracy, %</th>(.*?)</tr>", page_of(run))[1]
    shown = [name for kind, name in re.findall(r"<th( class=\"minor\")?>([^<]*)</th>", head) if not kind]
    assert shown == ["IMG", "Avg"]


@pytest.mark.parametrize(
    ("count", "most", "fitting"), [(3, 4, 3), (12, 4, 4), (5, 4, 3), (7, 6, 4), (1, 6, 1), (0, 4, 1)]
)
def test_rows_are_as_full_as_they_can_be(count, most, fitting):
    assert pages.columns(count, most) == fitting


def test_damaged_records_of_answers_and_pictures_are_left_out(run):
    odd = [None, {"image": 3}, {"image": "gone.png", "hidden": [[1.0], [2.0, 3.0]], "attention": "x", "other": []}]
    put(run / "eval" / "scienceqa" / "pictures.json", odd)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(lines([{"kind": "answers", "step": 1, "samples": 5}, {"kind": "answers", "samples": [{}]}]))
        file.write(lines([{"kind": "answers", "step": 2, "samples": ["x", {"answer": 7, "references": "red"}]}]))
        file.write(lines([{"kind": "answers", "step": 3, "samples": [{"answer": "blue", "references": ["red"]}]}]))
    page = page_of(run)
    assert page.count('<article class="look">') == 2 and '<rect class="veil"' not in page
    assert "<dt>step 2</dt><dd>(empty)</dd>" in page and "<dt>step 3</dt><dd>blue</dd>" in page
    assert "Not shown: metrics.jsonl: `answers[0].samples` is int '5', no list." in unescape(page)


def test_what_is_not_of_the_type_that_a_run_writes_is_named_and_the_rest_is_shown(run):
    file = run / "eval" / "scienceqa" / "metrics.json"
    metrics = json.loads(file.read_text())
    put(file, {**metrics, "accuracy": {**metrics["accuracy"], "NAT": "<b>high", "Avg": 12.34}, "counts": 5})
    rows = (run / "eval" / "scienceqa" / "predictions.jsonl").read_text()
    odd = [{"id": "9", "question": "Odd?", "choices": 5, "prediction": 10**30}, 7, {"id": "10", "choices": ["a"]}]
    put(run / "eval" / "scienceqa" / "predictions.jsonl", rows + lines(odd))
    put(run / "trainable.json", [{"parameters": "many", "share": 0.5}, {"parameters": 2_000, "share": 0.1}])
    with open(run / "metrics.jsonl", "a") as journal:
        movement = {"a": {"distance": 1.0, "relative": None}, "b": {"distance": "far"}}
        odd = [{"kind": "train", "step": 31, "loss": 1, "gates": [[0.1], [None, "x"]], "movement": movement}]
        odd.append({"kind": "train", "step": 32, "loss": 1e999, "lr": [], "memory": {"host_bytes": 10**400}})
        journal.write(lines(odd))
    page = unescape(page_of(run))
    assert "12.34" in page and "2,000" in page
    for told in (
        "Not shown: eval/scienceqa/metrics.json: `accuracy.NAT` is str '<b>high', no number.",
        "Not shown: eval/scienceqa/metrics.json: `counts` is int '5', no mapping.",
        "Not shown: eval/scienceqa/predictions.jsonl: `lines[2].choices` is int '5', no list.",
        "Not shown: eval/scienceqa/predictions.jsonl: `lines[3]` is int '7', no mapping.",
        "Not shown: trainable.json: `[0].parameters` is str 'many', no whole number.",
        "Not shown: metrics.jsonl: `train[30].gates[1][1]` is str 'x', no number.",
        "Not shown: metrics.jsonl: `train[30].movement.b` is without distance, relative.",
        "Not shown: metrics.jsonl: `train[31].lr` is list '[]', no number.",
    ):
        assert told in page


def test_many_lines_of_one_kind_are_counted(run):
    put(run / "eval" / "scienceqa" / "predictions.jsonl", lines([{"id": "1", "output": 5}] * 1200))
    told = "`lines[0].output` is int '5', no text, and 1,199 more like it."
    assert told in unescape(page_of(run))
