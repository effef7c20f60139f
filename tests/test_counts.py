"""Parameter counts at LLaMA-7B's shape, on the meta device (no weights): the papers' and the released numbers."""

import json
from types import SimpleNamespace

import pytest

from mmadapter.adapters.roles import GroupSettings, parameter_groups, trainable_parameters, trainable_table
from mmadapter.assistant import build_adapter
from mmadapter.hosts.load import load_host

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@pytest.fixture(scope="module")
def llama_7b(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("llama-7b")
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    return load_host(folder, torch.float32, device="meta")


def conf(images, layers=30, attention="zero_init", gate_per="head"):
    vision = SimpleNamespace(
        enabled=images, model="ViT-L-14-quickgelu", project_scales=True, layers=[3, 7, 11, 15, 19, 23], hidden=64
    )
    adapter = SimpleNamespace(
        layers=layers, prompt_length=10, gate="tanh", gate_per=gate_per, attention=attention, prompt_std=1.0
    )
    return SimpleNamespace(vision=vision, adapter=adapter, seed=0)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_host_has_the_size_of_llama_7b(llama_7b):
    assert count(llama_7b) == 6_738_415_616


def test_text_only_v1_trains_1229760_parameters(llama_7b):
    adapter = build_adapter(conf(images=False), llama_7b, "meta")
    sizes = {"prompt": 0, "gate": 0}
    for item in trainable_parameters(adapter):
        sizes[item.role] += item.parameter.numel()
    assert sizes == {"prompt": 300 * 4096, "gate": 960}
    assert count(adapter) == 1_229_760


def test_v1_with_images_trains_about_1_8_million(llama_7b):
    adapter = build_adapter(conf(images=True), llama_7b, "meta")
    assert count(adapter.visual_projection) == 561_216
    assert count(adapter) == 1_790_976


@pytest.mark.parametrize(("layers", "paper"), [(10, 0.97), (20, 1.37), (30, 1.79)])
def test_the_ablations_parameter_column(llama_7b, layers, paper):
    assert round(count(build_adapter(conf(images=True, layers=layers), llama_7b, "meta")) / 1e6, 2) == pytest.approx(
        paper, abs=0.011
    )


def test_the_joint_baseline_has_no_gates(llama_7b):
    adapter = build_adapter(conf(images=False, attention="joint"), llama_7b, "meta")
    assert {item.role for item in trainable_parameters(adapter)} == {"prompt"}
    assert count(adapter) == 1_228_800


def test_one_gate_a_layer_as_in_the_first_released_file(llama_7b):
    assert count(build_adapter(conf(images=False, gate_per="layer"), llama_7b, "meta")) == 1_228_800 + 30


def test_the_trainable_table_says_what_trains(llama_7b):
    trainable = trainable_parameters(build_adapter(conf(images=True), llama_7b, "meta"))
    settings = {"all": GroupSettings(["prompt", "gate", "visual_projection"], weight_decay=0.1)}
    groups = parameter_groups(trainable, settings)
    table = trainable_table(groups, trainable, 1e-3, 0.02, count(llama_7b))
    assert [(row["role"], row["tensors"], row["parameters"]) for row in table] == [
        ("prompt", 30, 1_228_800),
        ("gate", 30, 960),
        ("visual_projection", 4, 561_216),
    ]
    assert {row["weight_decay"] for row in table} == {0.1}
    assert sum(row["share"] for row in table) == pytest.approx(1_790_976 / 6_738_415_616)


@pytest.mark.parametrize(("experiment", "parameters"), [("scienceqa", 1_790_976), ("scienceqa_text", 1_229_760)])
def test_a_dry_run_needs_no_more_of_a_host_than_its_config(experiment, parameters, tmp_path, capsys):
    from mmadapter.training.run import run
    from tests.config.composing import run_conf

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    facts = run(run_conf(f"experiment={experiment}", f"host.path={tmp_path}", "dry_run=true", "threads=1"))
    assert facts["parameters"] == parameters and facts["memory"]["frozen"] >= 2 * 6_738_415_616
    printed = capsys.readouterr().out
    assert f"{parameters:,}" in printed and "memory estimate" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
