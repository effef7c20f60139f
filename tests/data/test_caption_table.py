"""The official V2's lists of tables: url TAB caption, with quoting off."""

from __future__ import annotations

import pytest

from mmadapter.errors import InputError
from tests.data.reading import read, read_caption_table
from tests.data.small_captions import DIRTY, save_picture, write_table


def test_lines_of_one_picture_are_its_captions(tmp_path):
    samples = read_caption_table(write_table(tmp_path), training=True)
    assert [(sample.image.name, sample.answer) for sample in samples] == [
        ("a.jpg", "one"),
        ("a.jpg", "three"),
        ("b.jpg", "two"),
    ]
    assert samples[0].where == "captions.csv, line 2, caption 1"
    assert [sample.meta["references"] for sample in read_caption_table(tmp_path, training=False)] == [
        ["one", "three"],
        ["two"],
    ]


@pytest.mark.parametrize("text", [text for text in DIRTY if "\n" not in text and "\t" not in text])
def test_texts_stay_texts(tmp_path, text):
    write_table(tmp_path, [f"a.jpg\t{text}", "b.jpg\tnext"])
    assert [sample.answer for sample in read_caption_table(tmp_path, training=True)] == [DIRTY[text], "next"]


@pytest.mark.parametrize("line", ["broken off", "a.jpg\tone\ttwo", "", "\tno picture"])
def test_a_line_has_two_fields(tmp_path, caplog, line):
    write_table(tmp_path, ["a.jpg\tone", line, "b.jpg\ttwo"])
    with pytest.raises(InputError, match="lines that have not two fields: 1, the first: captions.csv, line 3"):
        read_caption_table(tmp_path, training=True)
    assert len(read_caption_table(tmp_path, training=True, on_bad="skip")) == 2
    assert "captions.csv, line 3" in caplog.text


def test_tables_of_several_folders_and_accessorys_entries(tmp_path):
    write_table(tmp_path)
    (tmp_path / "second.csv").write_text("caption\turl\r\nfour\tc.jpg\r\n")
    save_picture(tmp_path / "sub/c.jpg")
    (tmp_path / "list.yaml").write_text(
        "META:\n  - captions.csv\n  - {path: second.csv, type: image_text, root: sub}\n"
    )
    samples = read_caption_table(tmp_path, training=True)
    assert len(samples) == 4 and samples[-1].answer == "four" and samples[-1].image == tmp_path / "sub/c.jpg"


def test_one_table_alone_and_pictures_elsewhere(tmp_path):
    write_table(tmp_path / "pictures")
    (tmp_path / "pictures/captions.csv").rename(tmp_path / "captions.csv")
    settings = {"path": tmp_path / "captions.csv", "split": "train", "source": "t", "training": True}
    assert len(read("caption_table", tmp_path / "pictures", **settings)) == 3
    with pytest.raises(InputError, match="2 of 2 pictures are missing"):
        read("caption_table", **settings)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("list.yaml", "META: captions.csv\n", "expected `META:` with a list"),
        ("list.yaml", "META: [\n", "this is no YAML"),
        ("list.yaml", "META:\n  - gone.csv\n", r"META\[0\]: there is no file gone.csv. Looked at"),
        ("list.yaml", "META:\n  - {path: captions.csv, type: text}\n", "its type is 'text'; expected is image_text"),
        ("list.yaml", "META:\n  - 5\n", r"META\[0\]: expected a path"),
        ("captions.csv", "a.jpg\tone\n", "line 1: the header is 'a.jpg<TAB>one'"),
        ("captions.csv", "url,caption\n", "line 1: the header is 'url,caption'"),
        ("captions.csv", "", "the file is empty"),
    ],
)
def test_what_is_no_such_file(tmp_path, name, content, told):
    (write_table(tmp_path) / name).write_text(content)
    with pytest.raises(InputError, match=told):
        read_caption_table(tmp_path, training=True)


def test_other_encodings_and_splits_are_refused(tmp_path):
    write_table(tmp_path)
    with pytest.raises(InputError, match="the files of caption_table have one split. Set caption_table.split=train"):
        read_caption_table(tmp_path, split="val", training=True)
    (tmp_path / "captions.csv").write_bytes(b"url\tcaption\na.jpg\tcaf\xe9\n")
    with pytest.raises(InputError, match="it is not UTF-8"):
        read_caption_table(tmp_path, training=True)
    (tmp_path / "list.yaml").unlink()
    (tmp_path / "captions.csv").unlink()
    with pytest.raises(InputError, match="expected one list of tables or table .*found none. Name the file"):
        read_caption_table(tmp_path, training=True)
