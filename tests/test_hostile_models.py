"""Adapters, hosts and Meta's folders of strangers: each is refused with one message that names file and place.

`HOSTILE` is the list, for `python -m tests.hostile` too. A case changes a valid folder and opens it through a public
door. Most of these once ended in a traceback, some were believed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmadapter
from mmadapter.config import RunConf, save_config
from mmadapter.errors import InputError
from mmadapter.hosts.settings import HostConf
from mmadapter.interop.meta import convert
from mmadapter.methods import AdapterConf
from mmadapter.methods.folder import _file_digest
from mmadapter.methods.settings import LoraConf, ProjectionConf, PromptsConf
from mmadapter.model import AdaptedModel
from mmadapter.vision.settings import OpenClipSettings, VisionSettings
from tests.formula_models import STORED, filled, write_models

NAN = float("nan")
GONE = object()  # a key that is taken out
Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Hostile:
    """`spoil` gets a folder with `host/`, `clip/`, `v2/` (an adapter), `run/` (with one) and `meta/`; `open` opens."""

    name: str
    spoil: Change
    open: Change
    says: str  # a pattern of the message


# Doors.


def as_adapter(folder: Path) -> Any:
    return mmadapter.load(folder / "v2", host=folder / "host", vision=folder / "clip", device="cpu")


def as_run(folder: Path) -> Any:
    return mmadapter.load(folder / "run", device="cpu")


def as_meta(folder: Path) -> Any:
    return convert(folder / "meta", folder / "out")


def built(**methods: Any) -> Change:
    """AdaptedModel.build with these methods."""

    def build(folder: Path) -> Any:
        vision = OpenClipSettings(model=str(folder / "clip"), layers=[1, 2])
        if "projection" not in methods:
            vision = VisionSettings(enabled=False)
        host = HostConf(path=str(folder / "host"), max_tokens=64)
        return AdaptedModel.build(host, vision, AdapterConf(methods=dict(methods)), 0, "cpu")

    return build


# What is done to a folder.


def written(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def at(name: str, *path: str, to: Any) -> Change:
    """The value at a path of keys in a JSON file becomes another."""

    def change(folder: Path) -> None:
        content = inner = json.loads((folder / name).read_text())
        for key in path[:-1]:
            inner = inner[key]
        if to is GONE:
            del inner[path[-1]]
        else:
            inner[path[-1]] = to
        (folder / name).write_text(json.dumps(content))

    return change


def tensors(change: Callable[[dict], dict], lists: bool = True) -> Change:
    """Other tensors in the adapter, with the right checksum; `lists`: the card lists their shapes too."""

    def spoil(folder: Path) -> None:
        file, card = folder / "v2" / "adapter.safetensors", folder / "v2" / "adapter.json"
        made = change(load_file(file))
        save_file(made, file)
        content = json.loads(card.read_text()) | {"sha256": _file_digest(file)}
        if lists:
            content["tensors"] = {name: list(tensor.shape) for name, tensor in made.items()}
        card.write_text(json.dumps(content))

    return spoil


def bytes_of_tensors(content: bytes) -> Change:
    def spoil(folder: Path) -> None:
        file = folder / "v2" / "adapter.safetensors"
        file.write_bytes(content)
        at("v2/adapter.json", "sha256", to=_file_digest(file))(folder)

    return spoil


def weights(change: Callable[[dict], dict]) -> Change:
    def spoil(folder: Path) -> None:
        file = folder / "host" / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return spoil


def shards(change: Callable[[dict], Any], name: str = "consolidated.00.pth") -> Change:
    """Another content of a file of Meta's."""

    def spoil(folder: Path) -> None:
        file = folder / "meta" / "consolidated.00.pth"
        torch.save(change(torch.load(file, weights_only=True)), folder / "meta" / name)

    return spoil


def settings_of_run(*path: str, to: Any) -> Change:
    def change(folder: Path) -> None:
        import yaml

        content = inner = yaml.safe_load((folder / "run" / "config.yaml").read_text())
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to
        (folder / "run" / "config.yaml").write_text(yaml.safe_dump(content))

    return change


CARD, CONFIG, PARAMS = "v2/adapter.json", "host/config.json", "meta/params.json"
DEEP, LONG = "[" * 100_000, '{"format": ' + "9" * 5000 + "}"


def card_cases() -> list[Hostile]:
    whole = {
        "5": "5",
        "null": "null",
        "a text": '"text"',
        "a list": "[]",
        "empty": "",
        "half": '{"format": 2, "adap',
        "deep": DEEP,
        "deep object": '{"a":' * 50_000,
        "5000 digits": LONG,
        "NaN": '{"format": NaN}',
        "not UTF-8": b"\xff\xfe\x00{",
        "no keys": "{}",
    }
    cases = [
        Hostile(f"card is {name}", written(CARD, one), as_adapter, r"adapter\.json") for name, one in whole.items()
    ]
    values: list[tuple[tuple[str, ...], Any, str]] = [
        (("format",), 99, "format 99, which a newer mmadapter wrote"),
        (("format",), "2", "format is '2'"),
        (("format",), True, "format is True"),
        (("format",), -1, "format is -1"),
        (("format",), 1, "does not fit this tensors"),
        (("adapter",), None, "adapter is None, allowed: an object"),
        (("adapter",), [], r"adapter is \[\]"),
        (("adapter",), {}, "does not fit this tensors"),
        (("adapter", "hyper"), {}, "adapter.hyper"),
        (("adapter", "prompts"), "text", "adapter.prompts=text: it must be a mapping"),
        (("adapter", "prompts", "length"), "ten", r"adapter\.prompts\.length"),
        (("adapter", "prompts", "length"), -5, "length=-5: must be at least 1"),
        (("adapter", "prompts", "length"), 10**9, r"prompts\.1\.prompt: adapter \[3, 16\], here \[1000000000, 16\]"),
        (("adapter", "prompts", "length"), 10**18, "the adapter's sizes cannot be"),
        (("adapter", "prompts", "length"), 2.5, r"adapter\.prompts\.length"),
        (("adapter", "prompts", "layers"), 10**6, "the host has 3 layers"),
        (("adapter", "prompts", "layers"), 1, r"prompts\.1\.prompt"),
        (("adapter", "prompts", "gate"), "sigmoid", "gate=sigmoid: allowed are tanh, identity"),
        (("adapter", "prompts", "std"), NAN, "cannot be read: it holds the number NaN"),
        (("adapter", "prompts", "nothing"), 1, r"adapter\.prompts\.nothing"),
        (("adapter", "projection"), GONE, "no visual tokens without"),
        (("adapter", "projection", "kind"), "query_transformer", "heads=16 does not divide"),
        (("adapter", "projection", "blocks"), 10**9, "blocks=1000000000: must be at most 1000"),
        (("adapter", "projection", "hidden"), 0, "hidden=0: must be at least 1"),
        (("adapter", "projection", "tokens"), 3, "does not fit this tensors"),
        (("adapter", "bias_scale", "bias"), ["no such"], "no such"),
        (("adapter", "bias_scale", "bias"), "all", r"adapter\.bias_scale\.bias"),
        (("adapter", "norms", "which"), ["all"], r"adapter\.norms\.which"),
        (("adapter", "groups"), {"a": {"roles": ["prompt"]}}, "are of a training"),
        (("host",), None, "host is None, allowed: an object"),
        (("host",), "llama", "host is 'llama'"),
        (("host",), {}, "host.model_type is missing"),
        (("host", "model_type"), 7, "host.model_type is 7"),
        (("host", "model_type"), "bloom", "bloom"),
        (("host", "width"), "big", "host.width is 'big'"),
        (("host", "width"), 32, "width: adapter 32, here 16"),
        (("host", "layers"), -3, "host.layers is -3"),
        (("host", "heads"), True, "host.heads is True"),
        (("host", "config_digest"), "0" * 16, "config_digest: adapter 0000"),
        (("host", "tokenizer_digest"), 5, "host.tokenizer_digest is 5"),
        (("host", "weights_digest"), "f" * 16, "a host of this shape with other weights"),
        (("host", "weights_digest"), "../../etc", "host.weights_digest is"),
        (("vision",), None, "vision"),
        (("vision",), [1], r"vision is \[1\]"),
        (("vision",), {}, "vision"),
        (("vision", "encoder_digest"), "0" * 16, "encoder_digest"),
        (("encoder",), "x", "encoder is 'x'"),
        (("encoder",), {}, "encoder.encoder is missing"),
        (("encoder", "encoder"), "resnet", "resnet"),
        (("encoder", "encoder"), ["open_clip"], "encoder.encoder is missing"),
        (("encoder", "layers"), [99], "no block 99"),
        (("encoder", "layers"), "all", r"vision\.layers"),
        (("encoder", "tokens"), "some", "tokens=some: allowed are"),
        (("encoder", "pretrained"), "/etc/passwd", "encoder.pretrained holds on one machine only"),
        (("encoder", "cache"), "/somewhere", "encoder.cache holds on one machine only"),
        (("encoder", "workers"), 10**6, "encoder.workers holds on one machine only"),
        (("encoder",), None, "text only|vision"),
        (("max_tokens",), 0, "max_tokens is 0"),
        (("max_tokens",), "many", "max_tokens is 'many'"),
        (("max_tokens",), 10**9, "host.max_tokens=1000000000, but the host was built for 128"),
        (("template",), "nonsense", "template is 'nonsense', allowed: auto"),
        (("template",), {}, r"template is \{\}"),
        (("begin_of_text",), "maybe", "begin_of_text is 'maybe', allowed: auto, always or never"),
        (("chat_template",), 5, "chat_template is 5"),
        (("system",), ["a"], "system is"),
        (("versions",), "0.2", "versions is '0.2'"),
        (("training",), [], r"training is \[\]"),
        (("tensors",), None, "tensors is None"),
        (("tensors",), {}, "does not fit this tensors"),
        (("tensors",), {"a": "b"}, "tensors is"),
        (("tensors", "prompts.1.prompt"), [3, -16], "tensors is"),
        (("tensors", "prompts.1.prompt"), [3, 17], r"prompts\.1\.prompt"),
        (("sha256",), GONE, "says nothing on sha256"),
        (("sha256",), None, "sha256 is None"),
        (("sha256",), "0" * 64, "is damaged: its checksum"),
        (("parameters",), "all", "parameters is 'all'"),
    ]
    for path, value, says in values:
        told = "gone" if value is GONE else str(value)[:30]
        cases.append(Hostile(f"card: {'.'.join(path)} {told}", at(CARD, *path, to=value), as_adapter, says))
    return cases


def tensor_cases() -> list[Hostile]:
    prompt = "prompts.1.prompt"
    spoilt: dict[str, tuple[Change, str]] = {
        "int32": (tensors(lambda one: {name: tensor.int() for name, tensor in one.items()}), "of type int32"),
        "bool": (tensors(lambda one: one | {prompt: one[prompt] > 0}), "of type bool"),
        "all NaN": (tensors(lambda one: {n: t * NAN for n, t in one.items()}), "numbers that are not finite"),
        "one infinite": (
            tensors(lambda one: one | {prompt: one[prompt] / 0}),
            r"prompts\.1\.prompt holds numbers that",
        ),
        "one too many": (tensors(lambda one: one | {"extra": torch.zeros(2)}), "extra"),
        "one too many, not listed": (tensors(lambda one: one | {"extra": torch.zeros(2)}, False), "extra"),
        "one missing": (tensors(lambda one: {n: t for n, t in one.items() if n != prompt}), "prompts.1.prompt"),
        "another shape": (tensors(lambda one: one | {prompt: one[prompt].T.contiguous()}), "prompts.1.prompt"),
        "other shape, not listed": (
            tensors(lambda o: o | {prompt: o[prompt].T.contiguous()}, False),
            "prompts.1.prompt",
        ),
        "no file": (lambda folder: (folder / "v2" / "adapter.safetensors").unlink(), "is missing"),
        "empty": (bytes_of_tensors(b""), "no safetensors file"),
        "a lying header": (bytes_of_tensors(b"\xff" * 8 + b"{}"), "no safetensors file"),
        "a header of nonsense": (bytes_of_tensors((4).to_bytes(8, "little") + b"nope"), "no safetensors file"),
        "a pickle": (bytes_of_tensors(b"\x80\x04cos\nsystem\n(S'true'\ntR."), "no safetensors file"),
        "a folder": (
            lambda f: ((f / "v2" / "adapter.safetensors").unlink(), (f / "v2" / "adapter.safetensors").mkdir()),
            "is missing",
        ),
    }
    return [Hostile(f"tensors: {name}", spoil, as_adapter, says) for name, (spoil, says) in spoilt.items()]


def host_cases() -> list[Hostile]:
    whole = {
        "a list": "[]",
        "null": "null",
        "half": '{"model',
        "deep": DEEP,
        "empty": "",
        "Infinity": '{"a": Infinity}',
    }
    cases = [Hostile(f"config is {n}", written(CONFIG, one), as_adapter, r"config\.json") for n, one in whole.items()]
    values: list[tuple[str, Any, str]] = [
        ("model_type", ["llama"], "model_type is"),
        ("model_type", None, "model_type is None"),
        ("model_type", GONE, "(none)"),
        ("model_type", "evil", "'evil', which no row"),
        ("hidden_size", "big", "hidden_size is 'big', allowed: a whole number"),
        ("hidden_size", -16, "hidden_size is -16"),
        ("hidden_size", 16.0, "hidden_size is 16.0"),
        ("hidden_size", 10**12, "hidden_size is 10"),
        ("hidden_size", 32, "width: adapter 16, here 32"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0"),
        ("num_hidden_layers", 10**9, "whole number from 1 to 1,000"),
        ("num_attention_heads", 0, "num_attention_heads is 0"),
        ("num_attention_heads", 7, "num_attention_heads is 7, which does not divide hidden_size, 16"),
        ("num_key_value_heads", 3, "does not divide num_attention_heads, 4"),
        ("vocab_size", True, "vocab_size is True"),
        ("intermediate_size", {}, "intermediate_size is"),
        ("max_position_embeddings", "many", "max_position_embeddings is 'many'"),
        ("head_dim", -4, "head_dim is -4"),
        ("rms_norm_eps", -1e-6, "rms_norm_eps is -1e-06, allowed: a number above 0"),
        ("rms_norm_eps", NAN, "holds the number NaN"),
        ("rms_norm_eps", "small", "rms_norm_eps is 'small'"),
        ("hidden_act", "nonsense", "nonsense"),
        ("hidden_act", 5, "hidden_act is 5"),
        ("tie_word_embeddings", "false", "tie_word_embeddings is 'false', allowed: true or false"),
        ("rope_scaling", "linear", "rope_scaling is 'linear'"),
        ("rope_scaling", {"rope_type": "nonsense"}, "config_digest|nonsense"),
        ("quantization_config", "int4", "quantization_config is 'int4'"),
        ("quantization_config", {"quant_method": "nonsense"}, "nonsense|quant|config"),
    ]
    for name, value, says in values:
        told = "gone" if value is GONE else str(value)[:30]
        cases.append(Hostile(f"config: {name} {told}", at(CONFIG, name, to=value), as_adapter, says))
    up = "model.layers.1.mlp.up_proj.weight"
    spoilt: dict[str, tuple[Change, str]] = {
        "NaN": (weights(lambda one: {n: t * NAN for n, t in one.items()}), "not finite"),
        "one missing": (weights(lambda one: {n: t for n, t in one.items() if n != up}), "up_proj"),
        "another shape": (
            weights(lambda one: one | {up: one[up][:, :8].contiguous()}),
            "cannot be loaded|up_proj|size",
        ),
        "whole numbers": (weights(lambda one: {n: (t * 9).int() for n, t in one.items()}), "other weights|cannot be"),
        "times 1.001": (weights(lambda one: {n: t * 1.001 for n, t in one.items()}), "with other weights"),
        "empty": (written("host/model.safetensors", b""), "cannot be loaded"),
        "a pickle": (written("host/model.safetensors", b"\x80\x04cos\nsystem\n(S'true'\ntR."), "cannot be loaded"),
        "no file": (lambda folder: (folder / "host" / "model.safetensors").unlink(), "cannot be loaded"),
        "tokenizer [] ": (written("host/tokenizer.json", "[]"), "no tokenizer can be read"),
        "tokenizer gone": (lambda folder: (folder / "host" / "tokenizer.json").unlink(), "tokenizer"),
        "clip config []": (written("clip/open_clip_config.json", "[]"), r"open_clip_config\.json|vision"),
        "clip weights empty": (written("clip/open_clip_model.safetensors", b""), "clip"),
    }
    return cases + [Hostile(f"host: {name}", spoil, as_adapter, says) for name, (spoil, says) in spoilt.items()]


def run_cases() -> list[Hostile]:
    return [
        Hostile(f"run: {'.'.join(path)} {value}", settings_of_run(*path, to=value), as_run, says)
        for path, value, says in [
            (("adapter", "prompts", "length"), -10, r"config\.yaml: .*length=-10: must be at least 1"),
            (("adapter", "prompts", "gate"), "sigmoid", "gate=sigmoid: allowed"),
            (("host", "attention"), "magic", "attention=magic: allowed"),
            (("host", "path"), "/nowhere/at/all", "no such folder"),
            (("vision", "layers"), [99], "no block 99"),
        ]
    ]


def build_cases() -> list[Hostile]:
    nothing = lambda folder: None  # noqa: E731
    visual = {"prompts": PromptsConf(length=3, layers=2)}
    return [
        Hostile(f"build: {name}", nothing, built(**methods), says)
        for name, methods, says in [
            ("length -5", {"prompts": PromptsConf(length=-5)}, "adapter.prompts.length=-5: must be at least 1"),
            ("gate sigmoid", {"prompts": PromptsConf(gate="sigmoid")}, "gate=sigmoid: allowed"),
            ("layers 9", {"prompts": PromptsConf(layers=9)}, "the host has 3 layers"),
            ("rank 0", {"lora": LoraConf(rank=0)}, "adapter.lora.rank=0"),
            ("on nothing", {"lora": LoraConf(on=[])}, "adapter.lora.on is empty"),
            ("on nonsense", {"lora": LoraConf(on=["nonsense"])}, "nonsense"),
            ("hidden -1", visual | {"projection": ProjectionConf(hidden=-1)}, "hidden=-1"),
        ]
    ]


def meta_cases() -> list[Hostile]:
    whole = {"a list": "[]", "null": "null", "deep": DEEP, "empty": "", "5000 digits": LONG}
    cases = [Hostile(f"params is {n}", written(PARAMS, one), as_meta, r"params\.json") for n, one in whole.items()]
    values: list[tuple[str, Any, str]] = [
        ("dim", "x", "dim is 'x', allowed: a whole number"),
        ("dim", -8, "dim is -8"),
        ("dim", 24, "do not fit|params.json"),
        ("n_heads", 0, "n_heads is 0"),
        ("n_heads", 3, "n_heads is 3: dim, 16, must be"),
        ("n_layers", 10**9, "n_layers is 1000000000"),
        ("n_layers", 2, "do not fit params.json"),
        ("multiple_of", 0, "multiple_of is 0"),
        ("norm_eps", "small", "norm_eps is 'small'"),
        ("norm_eps", -1, "norm_eps is -1"),
        ("n_kv_heads", 3, "n_kv_heads is 3"),
        ("vocab_size", "all", "vocab_size is 'all'"),
        ("rope_theta", [], "rope_theta is"),
        ("use_scaled_rope", "yes", "use_scaled_rope is 'yes', allowed: true or false"),
        ("evil", 1, "not known here: evil"),
    ]
    cases += [Hostile(f"params: {n} {v}", at(PARAMS, n, to=v), as_meta, says) for n, v, says in values]
    wk = "layers.0.attention.wk.weight"
    spoilt: dict[str, tuple[Change, str]] = {
        "a list": (shards(lambda one: list(one.values())), "holds a list"),
        "an unknown tensor": (
            shards(lambda one: one | {"evil": torch.zeros(2)}),
            "tensors that a LLaMA does not have.*evil",
        ),
        "an unknown inner tensor": (shards(lambda one: one | {"layers.0.evil.weight": torch.zeros(2)}), "evil"),
        "a text": (shards(lambda one: one | {wk: "text"}), "wk.weight' is str"),
        "whole numbers": (shards(lambda one: one | {wk: one[wk].int()}), "wk.weight' is torch.int32"),
        "another shape": (shards(lambda one: one | {wk: one[wk][:3].clone()}), "do not fit"),
        "one dimension": (shards(lambda one: one | {wk: one[wk].flatten()}), "do not fit"),
        "parts that differ": (shards(lambda one: {wk: one[wk]}, "consolidated.01.pth"), "not parts of one model"),
        "parts that do not join": (
            shards(lambda one: {n: t.flatten() for n, t in one.items()}, "consolidated.01.pth"),
            "do not fit together",
        ),
        "a part of nonsense": (written("meta/consolidated.01.pth", b"nonsense"), "cannot be read"),
    }
    return cases + [Hostile(f"meta: {name}", spoil, as_meta, says) for name, (spoil, says) in spoilt.items()]


HOSTILE = [*card_cases(), *tensor_cases(), *host_cases(), *run_cases(), *build_cases(), *meta_cases()]


def write_valid(folder: Path) -> Path:
    """What every case starts from; every door opens it as it is."""
    write_models(folder)
    shutil.copytree(STORED / "v2", folder / "v2")
    conf = RunConf(host=HostConf(path=str(folder / "host"), max_tokens=64))
    conf.adapter.methods = {"prompts": PromptsConf(length=3, layers=2), "projection": ProjectionConf(hidden=4)}
    for role in ("prompt", "gate", "visual_projection"):
        conf.adapter.frozen.append(role)
    conf.vision = OpenClipSettings(model=str(folder / "clip"), layers=[1, 2])
    save_config(conf, folder / "run")
    shutil.copytree(STORED / "v1_visual", folder / "run" / "adapter")
    (folder / "meta").mkdir()
    settings = {"dim": 16, "n_layers": 1, "n_heads": 4, "multiple_of": 8, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / PARAMS).write_text(json.dumps(settings))
    square = {f"layers.0.attention.w{name}.weight": (16, 16) for name in "qkvo"}
    inner = {f"layers.0.feed_forward.w{name}.weight": (48, 16) for name in "13"} | {
        "layers.0.feed_forward.w2.weight": (16, 48)
    }
    norms = {f"{name}.weight": (16,) for name in ("layers.0.attention_norm", "layers.0.ffn_norm", "norm")}
    outer = {"tok_embeddings.weight": (64, 16), "output.weight": (64, 16)}
    torch.save(filled(square | inner | norms | outer), folder / "meta" / "consolidated.00.pth")
    return folder


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("valid"))


def test_what_the_cases_start_from_is_taken(valid, tmp_path, caplog):
    for door in (as_adapter, as_run, built(lora=LoraConf(rank=1))):
        assert door(valid).generate("what is red", max_new_tokens=1)
    shutil.copytree(valid / "meta", tmp_path / "meta")
    as_meta(tmp_path)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not [record for record in caplog.records if record.name.startswith("mmadapter")]


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name)
def test_it_is_refused_and_the_message_says_where(case, valid, tmp_path):
    import re

    folder = tmp_path / "it"
    shutil.copytree(valid, folder, copy_function=shutil.copy)
    run = folder / "run" / "config.yaml"
    run.write_text(run.read_text().replace(str(valid), str(folder)))
    case.spoil(folder)
    with pytest.raises(InputError) as refused:
        case.open(folder)
    assert re.search(case.says, str(refused.value), re.DOTALL), str(refused.value)
    assert not (folder / "out").exists()


def test_keys_that_mean_nothing_are_named(valid, tmp_path, caplog):
    shutil.copytree(valid, tmp_path / "it")
    at(CARD, "note", to="of mine")(tmp_path / "it")
    with caplog.at_level(logging.WARNING, "mmadapter"):
        as_adapter(tmp_path / "it")
    assert "adapter.json: 'note' mean nothing here and are not used." in caplog.text


EVIL = "open({mark!r}, 'w').write('run')\nclass Evil:\n    pass\n"
OWN_CODE = {
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
        "tokenizer needs code of its own .auto_map in tokenizer_config.json.. Code out of a model's folder is never",
    ),
    "configuration": (
        "config.json",
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
        "'evil', which no row of hosts/families.py describes",
    ),
}


@pytest.mark.parametrize("where", OWN_CODE)
def test_code_in_a_hosts_folder_is_refused_and_never_run_whatever_is_answered(where, valid, tmp_path, monkeypatch):
    shutil.copytree(valid, tmp_path / "it")
    name, entries, says = OWN_CODE[where]
    host, mark = tmp_path / "it" / "host", tmp_path / "it_was_run"
    (host / "evil.py").write_text(EVIL.format(mark=str(mark)))
    for key, value in entries.items():
        at(f"host/{name}", key, to=value)(tmp_path / "it")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(InputError, match=says) as refused:
        as_adapter(tmp_path / "it")
    assert "\n" not in str(refused.value)
    assert not mark.exists() and not asked, "nothing is run, and nobody is asked"


def test_code_beside_a_model_that_transformers_knows_is_not_run_and_it_is_said(valid, tmp_path, caplog):
    shutil.copytree(valid, tmp_path / "it")
    host, mark = tmp_path / "it" / "host", tmp_path / "it_was_run"
    for file in ("evil.py", "custom_generate/generate.py"):
        (host / file).parent.mkdir(exist_ok=True)
        (host / file).write_text(EVIL.format(mark=str(mark)))
    at(CONFIG, "auto_map", to={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"})(tmp_path / "it")
    model = built(lora=LoraConf(rank=1))(tmp_path / "it")
    assert type(model.host).__name__ == "LlamaForCausalLM" and model.generate("what is red", max_new_tokens=2)
    assert not mark.exists() and "names code of its own (auto_map). It is not run" in caplog.text
