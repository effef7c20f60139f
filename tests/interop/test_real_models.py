"""The laws on a real model, SmolLM2-135M-Instruct: 30 layers, 9 heads over 3 key-value heads, an open vocabulary."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import eager_mask

from mmadapter.data.samples import Sample
from mmadapter.data.templates import Turn, rendered
from mmadapter.hosts.families import attention_modules
from mmadapter.hosts.load import load_host
from mmadapter.hosts.settings import GenerationConf, HostConf
from mmadapter.methods import AdapterConf
from mmadapter.methods.settings import BiasScaleConf, NormsConf, PromptsConf
from mmadapter.model import AdaptedModel
from mmadapter.vision.settings import VisionSettings
from tests.hosts.oracle import oracle_attention

pytestmark = pytest.mark.real

PROMPTS = {"prompts": PromptsConf(length=10, layers=30)}
LINEARS = {"bias_scale": BiasScaleConf(bias=["all"], scale=["all"], scale_on="input"), "norms": NormsConf()}
TEXT = "The capital of France is Paris. In 2024 it had 2,1 million inhabitants, and 日本語 is spoken there rarely."


@pytest.fixture(scope="module")
def smollm2(prepared):
    return prepared("smollm2")


def model_with(folder, methods, seed=0):
    host = HostConf(path=str(folder), max_tokens=256)
    return AdaptedModel.build(
        host, VisionSettings(enabled=False), AdapterConf(methods=methods), seed=seed, device="cpu"
    )


def opened(model, gate=0.5):
    """The model with its gates and shifts away from the start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for item in model.trainable_parameters():
            if item.role in ("gate", "bias", "scale"):
                item.parameter.add_(torch.randn(item.parameter.shape, generator=generator) * (gate / 10))
    return model


@torch.no_grad()
def test_a_fresh_adapter_leaves_the_hosts_logits_bit_identical(smollm2):
    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    for methods in (PROMPTS, LINEARS):
        model = model_with(smollm2, methods)
        ids = model.tokenizer(TEXT, return_tensors="pt")["input_ids"]
        assert torch.equal(model.logits(ids), plain(input_ids=ids).logits)


@torch.no_grad()
def test_open_gates_equal_the_concatenated_formula(smollm2):
    model = opened(model_with(smollm2, PROMPTS))
    ids = model.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    by_hand = load_host(smollm2, torch.float32, "eager")
    frozen = attention_modules(load_host(smollm2, torch.float32, "eager"))
    AttentionInterface.register("oracle", oracle_attention(model.adapter, None, frozen))
    AttentionMaskInterface.register("oracle", eager_mask)
    by_hand.config._attn_implementation = "oracle"
    found, expected = model.logits(ids), by_hand(input_ids=ids, use_cache=False).logits
    assert (found - expected).abs().max() < 2e-3  # of logits of size 30, after 30 layers in float32
    assert (found - frozen_logits(smollm2, ids)).abs().max() > 1


def frozen_logits(folder, ids):
    return load_host(folder, torch.float32)(input_ids=ids).logits


def test_with_and_without_a_cache_the_answers_are_the_same(smollm2):
    model = opened(model_with(smollm2, PROMPTS), gate=0.1)
    asked = ["What is the capital of France?", "Name three primary colours, and nothing else."]
    samples = [
        Sample(str(number), "test", rendered((Turn(text, None),), None, "chat", model.tokenizer), None, text)
        for number, text in enumerate(asked)
    ]
    settings = GenerationConf(max_new_tokens=12)
    found = {cache: model.answer(samples, settings, cache=cache) for cache in ("dynamic", "static", "none")}
    assert found["dynamic"] == found["static"] == found["none"]
    alone = [model.answer([sample], settings)[0] for sample in samples]
    assert alone == found["dynamic"] and "Paris" in alone[0]


STORED = """
import sys, torch
from tests.interop.test_real_models import LINEARS, PROMPTS, model_with
folder, adapter, ids, logits = sys.argv[1:]
model = model_with(folder, PROMPTS | LINEARS, seed=1)
model.load_adapter(adapter)
with torch.no_grad():
    print(torch.equal(model.logits(torch.load(ids)), torch.load(logits)))
"""


@torch.no_grad()
def test_a_saved_adapter_gives_the_same_logits_in_a_new_process(smollm2, tmp_path, checkout):
    model = opened(model_with(smollm2, PROMPTS | LINEARS))
    ids = model.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    model.save(tmp_path / "adapter")
    torch.save(ids, tmp_path / "ids")
    torch.save(model.logits(ids), tmp_path / "logits")
    words = [smollm2.absolute(), *(tmp_path / name for name in ("adapter", "ids", "logits"))]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", STORED, *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("methods", "rate", "steps", "gains"),
    # at least so many nats below the host alone, which has 2.36; measured: V1 1.77 and 1.80, V2 1.55
    [(PROMPTS, 0.01, 30, {20: 0.4, 30: 0.4}), (LINEARS, 0.002, 24, {24: 0.5})],
    ids=["v1", "v2"],
)
def test_a_few_steps_lower_the_held_out_loss(smollm2, reference_data, methods, rate, steps, gains):
    train, held_out = short_items(reference_data / "alpaca" / "alpaca_first2500.json")
    model = model_with(smollm2, methods)

    def held_out_loss():
        with torch.no_grad():
            return model.loss_of(held_out, template="alpaca").item()

    start = held_out_loss()
    assert 2.2 < start < 2.5  # the host's own
    optimizer = torch.optim.AdamW([item.parameter for item in model.trainable_parameters()], weight_decay=0.02)
    model.train()
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = rate * min(1, step / 4)
        optimizer.zero_grad()
        batch = train[4 * (step - 1) : 4 * step]
        model.loss_of(batch, template="alpaca").backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        if step in gains:
            loss = held_out_loss()
            print(f"step {step}: {start:.3f} -> {loss:.3f}")
            assert loss < start - gains[step]


def short_items(file):
    """(training, held out): short Alpaca items without input, as (instruction, answer, no picture)."""
    items = [
        (item["instruction"], item["output"], None)
        for item in json.loads(file.read_text(encoding="utf-8"))
        if not item["input"] and len(item["instruction"]) <= 70 and 8 <= len(item["output"]) <= 130
    ]
    return items[12:], items[:12]
