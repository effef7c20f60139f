"""Contradictions are refused before any model is built, with the key, what it got, what is allowed, how to mend it."""

from __future__ import annotations

import pytest

from mmadapter.config import validate, with_overrides
from mmadapter.errors import InputError
from tests.config.composing import choices, eval_conf, run_conf


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A folder that looks like a host."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def sound(host):
    """Settings that hold together, on that host."""
    return run_conf(f"host.path={host}", f"data.root={host / 'world'}", "adapter.prompts.layers=3")


@pytest.fixture
def conf(sound):
    """Those settings with further ones."""
    return lambda *overrides: with_overrides(sound, list(overrides), "test")


def refusal(settings) -> str:
    with pytest.raises(InputError) as refused:
        validate(settings)
    return str(refused.value)


def test_the_quick_start_holds_together(conf):
    validate(conf())


@pytest.mark.parametrize(
    "overrides,told",
    [
        (["launch.processes=4"], ["launch.processes=4 with engine=single", "engine=zero1"]),
        (
            ["engine.name=zero1", "launch.processes=40"],
            ["optimizer.batch_size=32 is shared out over 40 processes", "optimizer.batch_size=40"],
        ),
        (["vision.enabled=false"], ["data.sources.questions.images", "vision.enabled is false"]),
        (["vision.enabled=false"], ["adapter.projection is for pictures, but vision.enabled is false", "adapter=v1"]),
        (["data.sources.questions.images=false", "data.sources.captions.images=false"], ["never learn", "vision=none"]),
        (["vision.layers=[]"], ["vision.layers is empty"]),
        (["vision.layers=[0,0]"], ["names a block twice"]),
        (["vision.model=ViT-L-14", "vision.layers=[3,24]"], ["no block 24", "0 to 23"]),
        (["vision.model=ViT-L-15"], ["vision.model=ViT-L-15", "ViT-L-14"]),
        (["vision.model=ViT-L-14"], ["vision.pretrained is not set", "vision.pretrained=openai"]),
        (["vision.model=ViT-L-14", "vision.pretrained=/no/such.pt"], ["vision.pretrained=/no/such.pt", "no such file"]),
        (["data.sources.questions.prompt_format=QXM-A"], ["data.sources.questions.prompt_format", "QXM-A", "QCM-A"]),
        (["tasks.scienceqa.reader=vqa"], ["tasks.scienceqa.reader=vqa", "allowed are scienceqa"]),
        (["optimizer.batch_size=32", "optimizer.micro_batch_size=5"], ["does not divide", "micro_batch_size=4"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "[0.9,0.95]"]),
        (["optimizer.base_lr=0"], ["optimizer.base_lr", "above 0"]),
        (["optimizer.min_lr=1"], ["optimizer.min_lr=1", "actual rate"]),
        (["adapter.projection=null"], ["no method of the adapter reads pictures", "adapter=v1_visual"]),
        (["adapter.prompts.length=0"], ["adapter.prompts.length=0", "at least 1"]),
        (["host.dtype=float16"], ["host.dtype=float16", "auto, float32, bfloat16"]),
        (["adapter.groups.adapter.roles=[]"], ["adapter.groups.adapter.roles is empty"]),
        (["adapter.groups.adapter.roles=[prompt,gates]"], ["'gates'", "Did you mean gate?"]),
        (["adapter.groups.adapter.roles=[prompt]"], ["leaves gate without a group"]),
        (
            ["adapter.prompts.attention=joint"],
            ["names gate, which this adapter does not have: it is of adapter.prompts, as that is set"],
        ),
        (["adapter.early_fusion.layers=1"], ["leaves early_gate without a group", "adapter.frozen"]),
        (["adapter.projection=null", "adapter.early_fusion.layers=1"], ["early_fusion has no visual tokens without"]),
        (["adapter.bias_scale={bias: [], scale: []}"], ["are both empty", "adapter.bias_scale=null"]),
        (["adapter.lora.on=[]"], ["adapter.lora.on is empty", "adapter.lora=null"]),
        (["adapter.lora.rank=0"], ["adapter.lora.rank=0", "at least 1"]),
        (["adapter.projection.heads=5", "adapter.projection.kind=query_transformer"], ["heads=5 does not divide"]),
        (["adapter.frozen=[gate]"], ["'gate' is in adapter.frozen and in adapter.groups.adapter"]),
        (
            ["adapter.frozen=[bias]"],
            ["adapter.frozen names bias, which this adapter does not have: it is of adapter.bias_scale"],
        ),
        (["adapter.projection.tokens=3"], ["adapter.projection.tokens=3", "=1 or =10"]),
        (["adapter.projection.kind=query_transformer"], ["reads vision.tokens=all", "vision.tokens is class"]),
        (["vision.tokens=all"], ["kind=mlp reads vision.tokens=class"]),
        (["adapter.start=variant:v1"], ["adapter.start=variant:v1 names a variant"]),
        (["adapter.prompts=null"], ["no way in", "adapter.early_fusion.layers=1 (V2)"]),
        (["adapter.groups.adapter.sources=[pictures]"], ["pictures", "It has: questions, captions"]),
        (["adapter.groups.adapter.sources=[]"], ["adapter.groups.adapter.sources is empty"]),
        (["data.sources.captions.weight=null"], ["data.sources.captions.weight is not set"]),
        (["data.validation.questions.split=train"], ["must not be trained on", "split=val"]),
        (["host.attention=flex", "engine.device=cpu"], ["host.attention=flex", "no backward on CPU", "sdpa"]),
        (["host.quantization=int4"], ["host.quantization=int4", "int8, nf4"]),
        (["host.quantization=int8", "engine.name=zero3"], ["host.quantization=int8", "engine=zero3", "engine=zero2"]),
        (["host.tokenizer=/no/tokenizer"], ["host.tokenizer=/no/tokenizer"]),
        (["evaluate=[scienceq]"], ["evaluate names scienceq", "scienceqa, coco_caption"]),
        (["comparison.text_only.sources=[query]"], ["comparison.text_only.sources names query"]),
        (["tasks.scienceqa.generation.beams=3", "tasks.scienceqa.generation.temperature=0.5"], ["does not sample"]),
        (["resume=sometimes"], ["resume=sometimes", "auto, never"]),
        (["tasks.scienceqa.generation.top_p=1.5"], ["tasks.scienceqa.generation.top_p=1.5", "at most 1"]),
    ],
)
def test_a_contradiction_is_told_with_key_value_and_remedy(conf, overrides, told):
    message = refusal(conf(*overrides))
    assert all(part in message for part in told), message


def test_a_role_in_two_groups_is_refused(conf):
    settings = conf()
    settings.adapter.groups["second"] = type(settings.adapter.groups["adapter"])(roles=["gate"])
    assert "role 'gate' is in adapter.groups.adapter and in adapter.groups.second" in refusal(settings)


def test_weights_by_chance_and_groups_with_sources_of_their_own_exclude_each_other(conf):
    settings = conf("data.sources.questions.weight=1", "data.sources.captions.weight=1")
    validate(settings)
    settings.adapter.groups["adapter"].sources = ["questions"]
    assert "Remove the weights" in refusal(settings)


def test_a_missing_host_is_told_by_its_path():
    assert "host.path is not set" in refusal(run_conf("host=own"))
    assert "host.path=/no/llama: no such folder" in refusal(run_conf("host.path=/no/llama"))


def test_metas_layout_is_refused_with_the_command_that_converts_it(tmp_path):
    (tmp_path / "params.json").write_text('{"dim": 64, "n_layers": 2}')
    assert "Convert it once: mmadapter convert meta" in refusal(run_conf(f"host.path={tmp_path}"))


def test_all_contradictions_are_told_at_once(conf):
    message = refusal(conf("adapter.projection.tokens=9", "optimizer.micro_batch_size=7"))
    assert (
        message.startswith("2 settings cannot be used") and "adapter.projection.tokens=9" in message and "=7" in message
    )


def test_a_wrong_variant_is_refused_before_the_first_one_runs(conf):
    settings = conf()
    settings.variants["deep"] = ["adapter.prompts.layers=-1"]
    assert "variants.deep: adapter.prompts.layers=-1" in refusal(settings)
    settings.variants["deep"] = ["adapter.prompts.layrs=4"]
    said = "variants.deep: There is no setting 'adapter.prompts.layrs'. Did you mean adapter.prompts.layers?"
    assert said in refusal(settings)


def test_a_dry_run_needs_neither_data_nor_image_weights(host):
    settings = run_conf("experiment=scienceqa", f"host.path={host}", "adapter.prompts.layers=4", "host.max_tokens=64")
    assert "vision.pretrained is not set" in refusal(settings)
    settings.dry_run = True
    validate(settings)


def test_files_may_be_named_by_their_place_in_the_data_root(host, tmp_path):
    (tmp_path / "few.json").write_text("{}")
    given = ["experiment=scienceqa_text", f"host.path={host}", "adapter.prompts.layers=4", "host.max_tokens=64"]
    given += [f"data.root={tmp_path}", "optimizer.epochs=2"]
    validate(run_conf(*given, "data.sources.questions.pid_splits=few.json"))
    validate(eval_conf(f"predictions={tmp_path / 'few.json'}", f"task.root={tmp_path}", "task.pid_splits=few.json"))


@pytest.mark.parametrize("experiment", [name for name in choices("experiment") if name.startswith("ablation")])
def test_the_ablations_hold_together_with_all_their_variants(experiment, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    overrides = [f"host.path={tmp_path}", f"data.root={tmp_path}"]
    if experiment.endswith("_7b"):
        overrides.append("vision.pretrained=openai")
    validate(run_conf(f"experiment={experiment}", *overrides))


@pytest.mark.parametrize(
    "overrides,told",
    [
        (["run=a", "predictions=b"], "both are given"),
        (["predictions=/no/file", "task.root=/"], "predictions=/no/file: no such file"),
    ],
)
def test_eval_says_what_it_needs(overrides, told):
    assert told in refusal(eval_conf(*overrides))
