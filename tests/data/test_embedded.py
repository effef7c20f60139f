"""The embedded world: what the archives hold is what the generator makes, unpacked whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.archives import main
from data_prep.observatory import main as observatory
from data_prep.shapes import INTERFERENCE_FILES, make_world
from mmadapter.data import embedded
from mmadapter.data.embedded import unpack_missing_world
from mmadapter.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The world of experiment=interference as the generator makes it, the world of shapes within it."""
    out = tmp_path_factory.mktemp("made") / "world"
    make_world(out, interference=True)
    return out


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int16)


@pytest.mark.parametrize("part", ["shapes", "interference"])
def test_the_archives_hold_what_the_generator_makes(made, tmp_path, part):
    said: list[str] = []
    world = tmp_path / part
    assert unpack_missing_world(part, str(world), said.append)
    (line,) = said
    assert line.startswith(f"{world} is missing: unpacking the embedded world")
    command = "data_prep.shapes --interference makes" if part == "interference" else "data_prep.shapes makes"
    assert command in line
    wanted = (
        files(made)
        if part == "interference"
        else {name for name in files(made) if name.split("/")[0] not in INTERFERENCE_FILES}
    )
    assert files(world) == wanted
    for name in wanted:
        if name.endswith(".json"):
            assert (world / name).read_bytes() == (made / name).read_bytes(), name
        elif (world / name).read_bytes() != (
            made / name
        ).read_bytes():  # another Pillow packs the same pixels otherwise
            assert np.abs(pixels(world / name) - pixels(made / name)).max() <= (4 if name.endswith(".jpg") else 0), name


def test_the_observatorys_instructions_are_what_their_generator_writes(tmp_path):
    assert unpack_missing_world("observatory", str(tmp_path / "packed"), lambda line: None)
    assert observatory(["--out", str(tmp_path / "instructions.json")]) == 0
    written = (tmp_path / "instructions.json").read_bytes()
    assert (tmp_path / "packed" / "instructions.json").read_bytes() == written
    assert len(json.loads(written)) == 312


def test_a_world_of_an_earlier_version_gets_the_file_that_it_lacks(tmp_path):
    world, said = tmp_path / "world", []
    assert unpack_missing_world("shapes", str(world), lambda line: None)
    before = files(world)
    whole = (world / "short_captions.json").read_bytes()
    (world / "short_captions.json").unlink()
    unpack_missing_world("shapes", str(world), said.append)
    assert said == [f"{world / 'short_captions.json'} is missing, and was unpacked"]
    assert (world / "short_captions.json").read_bytes() == whole and files(world) == before


def test_nothing_is_unpacked_where_something_is_or_nothing_is_asked_for(tmp_path):
    assert not unpack_missing_world("shapes", str(tmp_path), pytest.fail)
    assert not unpack_missing_world(None, str(tmp_path / "own"), pytest.fail)
    assert not unpack_missing_world("shapes", None, pytest.fail)
    assert not list(tmp_path.iterdir())


def test_home_is_where_a_tilde_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert unpack_missing_world("shapes", "~/world", lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "ARCHIVES", tmp_path / "none")
    with pytest.raises(InputError, match="The embedded data is not in .*shapes.tar.gz.*data.root=FOLDER"):
        unpack_missing_world("shapes", str(tmp_path / "world"), lambda line: None)
    assert not list(tmp_path.iterdir())


def test_whoever_comes_second_takes_the_first_ones(tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        (tmp_path / "world/scienceqa").mkdir(parents=True)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert not unpack_missing_world("shapes", str(tmp_path / "world"), lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_the_command_packs_the_same_bytes_again(made, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.archives.make_world", lambda out, interference: out.symlink_to(made))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert main(["--out", str(tmp_path / name)]) == 0
    for part in ("shapes.tar.gz", "interference.tar.gz"):
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "two" / part).read_bytes()
