"""Webdataset shards: pictures are read inside of their tar files; what is damaged is counted by reason."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from mmadapter.errors import InputError
from mmadapter.vision.features import FeatureStore
from mmadapter.vision.images import content_digest, image_content, read_image
from mmadapter.vision.packed_images import packed_path, picture_exists
from tests.data.reading import read_caption_shards
from tests.data.small_captions import save_picture, web_pair, write_shard, write_shards
from tests.models import random_encoder


def test_pictures_stay_in_their_shards(tmp_path):
    samples = read_caption_shards(write_shards(tmp_path), training=True)
    assert [sample.id for sample in samples] == ["000000000-1", "000000001-1", "000010000-1", "000010001-1"]
    assert samples[3].answer == "caption of 000010001" and samples[3].where == "00001.tar, key 000010001, caption 1"
    assert [read_image(sample.image).getpixel((0, 0)) for sample in samples] == [(0, 0, 0), (1, 0, 0)] * 2
    assert not (tmp_path / "000000000.jpg").exists()


def test_a_packed_picture_is_a_path_like_any_other(tmp_path):
    sample = read_caption_shards(write_shards(tmp_path), training=True)[1]
    again = Path(str(sample.image))
    assert again == sample.image and again.name.startswith("000000001.jpg@") and picture_exists(again)
    (tmp_path / "same.jpg").write_bytes(web_pair("000000001")["000000001.jpg"])
    assert content_digest(image_content(again)) == content_digest(image_content(tmp_path / "same.jpg"))
    assert read_image(again).tobytes() == read_image(tmp_path / "same.jpg").tobytes()


def test_the_feature_store_takes_packed_pictures(tmp_path):
    sample = read_caption_shards(write_shards(tmp_path), training=True)[1]
    (tmp_path / "same.jpg").write_bytes(web_pair("000000001")["000000001.jpg"])
    store = FeatureStore(random_encoder())
    assert store.feature(sample.image).equal(store.feature(tmp_path / "same.jpg"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "./", "a/b/", "long/" * 25, "ünï/"])
def test_every_kind_of_tar(tmp_path, form, folder):
    pair = {f"{folder}{name}": content for name, content in web_pair("000000007").items()}
    write_shard(tmp_path / "0.tar", pair, form=form)
    (sample,) = read_caption_shards(tmp_path, training=True)
    assert read_image(sample.image).getpixel((0, 0)) == (7, 0, 0)


def test_an_archive_that_was_changed_is_refused(tmp_path):
    first, second = read_caption_shards(write_shards(tmp_path), training=True, limit=2)
    write_shard(tmp_path / "00000.tar", web_pair("000000001"), web_pair("000000000"))
    with pytest.raises(InputError, match=r"00000\.tar: no file 000000000\.jpg begins at byte 512.*'000000001\.jpg' is"):
        read_image(first.image)
    with pytest.raises(InputError, match="no file x.jpg begins at byte 700"):
        read_image(packed_path(tmp_path / "00000.tar", "x.jpg", 700))
    (tmp_path / "00000.tar").unlink()
    assert not picture_exists(second.image)
    with pytest.raises(InputError, match="there is no such image file"):
        read_image(second.image)


def test_a_real_file_of_such_a_name_is_itself(tmp_path):
    picture = save_picture(tmp_path / "x.tar/a.png", (5, 6, 7)).rename(tmp_path / "x.tar/a@12")
    assert read_image(picture).getpixel((0, 0)) == (5, 6, 7)


def without(pair: dict[str, bytes], ending: str) -> dict[str, bytes]:
    return {name: content for name, content in pair.items() if not name.endswith(ending)}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (without(web_pair("000000001"), ".jpg"), "keys without a picture: 1, the first: 00000.tar, key 000000001"),
        (without(web_pair("000000001"), ".txt"), "keys without a .txt: 1"),
        (web_pair("000000001", status="failed_to_download"), "keys whose status is not success: 1.*failed_to_download"),
        (web_pair("000000000"), "files that stand twice in a shard: 3, the first: 00000.tar, 000000000.jpg"),
        (web_pair("000000001", b"caf\xe9"), "keys whose .txt or .json cannot be read: 1"),
        (web_pair("000000001") | {"000000001.json": b'{"a'}, "keys whose .txt or .json cannot be read: 1"),
        (web_pair("000000002"), "keys that stand in an earlier shard, too: 1, the first: 00001.tar, key 000000002"),
    ],
)
def test_defects_of_a_key_stop_or_are_left_out_with_a_count(tmp_path, caplog, bad, told):
    write_shard(tmp_path / "00000.tar", web_pair("000000000"), bad)
    write_shard(tmp_path / "00001.tar", web_pair("000000002"))
    with pytest.raises(InputError, match=told):
        read_caption_shards(tmp_path, training=True)
    usable = {"000000000-1", "000000002-1"}
    assert {sample.id for sample in read_caption_shards(tmp_path, training=True, on_bad="skip")} == usable
    assert "they are left out" in caplog.text


def test_without_facts_or_with_other_files_all_is_well(tmp_path):
    write_shard(tmp_path / "0.tar", without(web_pair("000000000"), ".json") | {"000000000.cls": b"5"})
    assert len(read_caption_shards(tmp_path, training=True)) == 1


@pytest.mark.parametrize("cut", [200, 600, 1700, 3000, "mark", 0])
def test_a_truncated_shard_is_told_and_its_whole_part_used_on_request(tmp_path, cut):
    shard = write_shard(tmp_path / "00000.tar", *(web_pair(f"{number:09d}") for number in range(3)))
    write_shard(tmp_path / "00001.tar", web_pair("000010000"))
    with tarfile.open(shard) as archive:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in archive.getmembers()]
    content = shard.read_bytes()[: ends[-1]]
    shard.write_bytes(content if cut == "mark" else content[:cut] if cut == 0 else content[:-cut])
    with pytest.raises(InputError, match=r"shards that are cut off or no tar archives: 1, the first: 00000\.tar \("):
        read_caption_shards(tmp_path, training=True)
    samples = read_caption_shards(tmp_path, training=True, on_bad="skip")
    kept = {200: 3, 600: 3, 1700: 2, 3000: 2, "mark": 3, 0: 0}[cut]
    assert [sample.id for sample in samples if sample.id.startswith("00000000")] == [
        f"{number:09d}-1" for number in range(kept)
    ]
    assert samples[-1].id == "000010000-1" and [read_image(sample.image) for sample in samples]


def test_a_caption_that_is_cut_off_is_none(tmp_path):
    pair = web_pair("000000000", "word " * 400)
    shard = write_shard(tmp_path / "00000.tar", {name: pair[name] for name in sorted(pair)})
    write_shard(tmp_path / "00001.tar", web_pair("000010000"))
    shard.write_bytes(shard.read_bytes()[:3000])
    samples = read_caption_shards(tmp_path, training=True, on_bad="skip")
    assert [sample.id for sample in samples] == ["000010000-1"]


def test_a_picture_that_is_cut_off_since_is_told(tmp_path):
    sample = read_caption_shards(write_shards(tmp_path), training=True, limit=1)[0]
    shard = tmp_path / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:540])
    with pytest.raises(InputError, match=r"00000\.tar: it is cut off inside of 000000000\.jpg"):
        read_image(sample.image)


def test_limit_opens_no_later_shard(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "00001.tar").write_bytes(b"no tar")
    assert len(read_caption_shards(tmp_path, training=True, limit=2)) == 2


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match=r"there are no shards \*\.tar there\. Check"):
        read_caption_shards(tmp_path, training=True)
    (tmp_path / "00000.tar.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="1 compressed ones are; unpack them"):
        read_caption_shards(tmp_path, training=True)
