"""Parameter counts at LLaMA-7B's shape, on the meta device (no weights): the papers' and the released numbers."""

import json

import pytest
import torch

from mmadapter.hosts.load import load_host
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.groups import parameter_groups, trainable_parameters, trainable_table
from mmadapter.methods.settings import GroupConf
from tests.config.composing import run_conf

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


LLAMA_65B = {
    **LLAMA_7B,
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


@pytest.fixture(scope="module")
def llama_7b(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-7b")
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    return load_host(folder, torch.float32, device="meta")


def conf(images, *overrides):
    """The settings of a preset; text only where `images` is false."""
    composed = run_conf("experiment=scienceqa", "host.path=unused", *overrides)
    composed.vision.enabled = images
    if not images:
        composed.adapter.without_pictures()
    return composed


def new_adapter(conf, host, device):
    """The adapter of these settings, as AdaptedModel.build makes it."""
    features = conf.vision.feature_shape()[-1]
    return Adapter.build(conf.adapter, host, conf.seed, features=features, device=device)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_host_has_the_size_of_llama_7b(llama_7b):
    assert count(llama_7b) == 6_738_415_616


def test_text_only_v1_trains_1229760_parameters(llama_7b):
    adapter = new_adapter(conf(False), llama_7b, "meta")
    sizes = {"prompt": 0, "gate": 0}
    for item in trainable_parameters(adapter):
        sizes[item.role] += item.parameter.numel()
    assert sizes == {"prompt": 300 * 4096, "gate": 960}
    assert count(adapter) == 1_229_760


def test_v1_with_images_trains_about_1_8_million(llama_7b):
    adapter = new_adapter(conf(True), llama_7b, "meta")
    assert count(adapter["projection"]) == 561_216
    assert count(adapter) == 1_790_976


@pytest.mark.parametrize(("layers", "paper"), [(10, 0.97), (20, 1.37), (30, 1.79)])
def test_the_ablations_parameter_column(llama_7b, layers, paper):
    assert round(
        count(new_adapter(conf(True, f"adapter.prompts.layers={layers}"), llama_7b, "meta")) / 1e6, 2
    ) == pytest.approx(paper, abs=0.011)


def test_the_joint_baseline_has_no_gates(llama_7b):
    adapter = new_adapter(conf(False, "adapter.prompts.attention=joint"), llama_7b, "meta")
    assert {item.role for item in trainable_parameters(adapter)} == {"prompt"}
    assert count(adapter) == 1_228_800


def test_one_gate_a_layer_as_in_the_first_released_file(llama_7b):
    assert count(new_adapter(conf(False, "adapter.prompts.gate_per=layer"), llama_7b, "meta")) == 1_228_800 + 30


def test_the_trainable_table_says_what_trains(llama_7b):
    trainable = trainable_parameters(new_adapter(conf(True), llama_7b, "meta"))
    settings = {"all": GroupConf(["prompt", "gate", "visual_projection"], weight_decay=0.1)}
    groups = parameter_groups(trainable, settings)
    table = trainable_table(groups, trainable, 1e-3, 0.02, count(llama_7b))
    assert [(row["role"], row["tensors"], row["parameters"]) for row in table] == [
        ("prompt", 30, 1_228_800),
        ("gate", 30, 960),
        ("visual_projection", 4, 561_216),
    ]
    assert {row["weight_decay"] for row in table} == {0.1}
    assert sum(row["share"] for row in table) == pytest.approx(1_790_976 / 6_738_415_616)


def test_the_table_says_on_what_weight_decay_falls(llama_7b):
    settings = conf(True, "adapter=v2")
    trainable = trainable_parameters(new_adapter(settings, llama_7b, "meta"))
    table = trainable_table(parameter_groups(trainable, settings.adapter.groups), trainable, 1e-3, 0.02, 1)
    decayed = {row["role"] for row in table if row["weight_decay"] == 0.02}
    assert decayed == {"prompt", "gate", "early_gate", "visual_projection"}, "not on norms, biases and scales"


@pytest.mark.parametrize(("experiment", "parameters"), [("scienceqa", 1_790_976), ("scienceqa_text", 1_229_760)])
def test_a_dry_run_needs_no_more_of_a_host_than_its_config(experiment, parameters, tmp_path, capsys):
    from mmadapter.training.run import run

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    facts = run(run_conf(f"experiment={experiment}", f"host.path={tmp_path}", "dry_run=true", "threads=1"))
    assert facts["parameters"] == parameters and facts["memory"]["frozen"] >= 2 * 6_738_415_616
    printed = capsys.readouterr().out
    assert f"{parameters:,}" in printed and "memory estimate" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def sizes(adapter):
    """Parameters by role."""
    found = dict.fromkeys((item.role for item in trainable_parameters(adapter)), 0)
    for item in trainable_parameters(adapter):
        found[item.role] += item.parameter.numel()
    return found


TOKENS = ("vision=clip_vit_l14_tokens",)


def test_v1s_caption_model_has_8814080_visual_parameters(llama_7b):
    found = sizes(new_adapter(conf(True, "adapter=v1_caption", *TOKENS), llama_7b, "meta"))
    assert found == {"prompt": 1_228_800, "gate": 960, "visual_projection": 8_814_080}


def test_the_papers_v2_has_5526496_instruction_parameters(llama_7b):
    found = sizes(new_adapter(conf(True, "adapter=v2"), llama_7b, "meta"))
    assert found["bias"] + found["scale"] == 2_719_744
    assert (found["norm"], found["prompt"], found["gate"]) == (266_240, 2_539_520, 992)
    assert sum(found[role] for role in ("bias", "scale", "norm", "prompt", "gate")) == 5_526_496
    assert found["early_gate"] == 32
    assert found["visual_projection"] == 4608 * 64 + 64 + (64 + 1) * 20 * 4096


def test_the_released_v2_phase_1_trains_61731584_parameters(llama_7b):
    settings = conf(True, "adapter=v2_release", *TOKENS)
    adapter = new_adapter(settings, llama_7b, "meta")
    (group,) = parameter_groups(trainable_parameters(adapter), settings.adapter.groups, settings.adapter.frozen)
    unused_gates_of_layer_0 = 32  # in the released file, never used, and not in ours
    assert group.size + unused_gates_of_layer_0 == 61_731_584
    assert sizes(adapter)["visual_projection"] == 61_731_584 - 1_269_760 - 1024


def test_the_released_v2_phase_2_trains_1363968_parameters(llama_7b):
    settings = conf(True, "adapter=v2_release_phase2", *TOKENS)
    (group,) = parameter_groups(
        trainable_parameters(new_adapter(settings, llama_7b, "meta")), settings.adapter.groups, settings.adapter.frozen
    )
    assert group.size == 1_363_968


def test_the_released_chat_recipe_trains_13803520_parameters_at_65b(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_65B))
    host = load_host(tmp_path, torch.float32, device="meta")
    found = sizes(new_adapter(conf(False, "adapter=v2_chat"), host, "meta"))
    assert found == {"bias": 6_799_360, "scale": 5_693_440, "norm": 1_310_720}
    assert sum(found.values()) == 13_803_520


def test_the_chat_recipe_trains_2760704_parameters_at_7b(llama_7b):
    assert count(new_adapter(conf(False, "adapter=v2_chat"), llama_7b, "meta")) == 2_760_704


def test_lora_of_rank_16_has_39976960_parameters(llama_7b):
    found = sizes(new_adapter(conf(True, "adapter=v2_release_lora", *TOKENS), llama_7b, "meta"))
    assert found["lora"] == 39_976_960
    assert found["gate"] == 31 * 32 + 31  # the released file has 32 factors: layer 0's is never used
