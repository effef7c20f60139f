"""Our V2 as released equals what the official code computes (numbers in tests/golden, made with it)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from mmadapter.hosts.attention import route
from mmadapter.hosts.calls import FINAL
from mmadapter.interop.meta import llama_settings, rename_llama_tensors, rows_to_halves
from mmadapter.methods import AdapterConf
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.settings import BiasScaleConf, LoraConf, NormsConf, ProjectionConf, PromptsConf

FOLDER = Path(__file__).parents[1] / "golden"
BIASED = ["q", "o", "gate", "up", "down"]
LINEARS = {"q": "attention.{}wq", "k": "attention.{}wk", "v": "attention.{}wv", "o": "attention.{}wo"}
LINEARS |= {"gate": "feed_forward.{}w1", "down": "feed_forward.{}w2", "up": "feed_forward.{}w3"}
PROJECTION = {"narrow": "clip_proj", "narrow_norm": "clip_proj_norm", "widen": "visual_proj"}
PROJECTION |= {"widen_norm": "visual_proj_norm"}


class Golden:
    """One file: the official tensors, and our host and adapter built from them."""

    def __init__(self, name, attention="sdpa"):
        with safe_open(FOLDER / f"official_v2_{name}_small.safetensors", "pt") as file:
            self.about = json.loads(file.metadata()["about"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.first = self.about["n_layers"] - self.about["adapted_layers"]
        self.host = self._host(attention)
        self.adapter = self._adapter()
        with torch.no_grad():
            for official, parameter in self.pairs():
                parameter.copy_(self.ours(official, self.tensors[f"adapter.{official}"]).view_as(parameter))

    def _host(self, attention):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**llama_settings(self.about, self.about["vocab_size"]), attn_implementation=attention)
        host = LlamaForCausalLM(config)
        base = {name.removeprefix("base."): t for name, t in self.tensors.items() if name.startswith("base.")}
        renamed = rename_llama_tensors(base, config.num_attention_heads, config.num_key_value_heads)
        found = host.load_state_dict(renamed, strict=False)
        assert all("norm" in name for name in found.missing_keys) and not found.unexpected_keys
        host.requires_grad_(False).eval()
        route(host)
        return host

    def _adapter(self):
        about, visual = self.about, self.about["visual"]
        rank, length, layers = about["lora_rank"], about["prompt_length"], about["adapted_layers"]
        inner = {"hidden": visual["embed"], "blocks": visual["depth"], "heads": visual["heads"]}
        methods = {
            "projection": ProjectionConf("query_transformer", tokens=length, **inner),
            "prompts": PromptsConf(length=length, layers=layers, gate_factor=rank > 0, through="base"),
            "bias_scale": BiasScaleConf(bias=BIASED, scale=[]),
            "norms": NormsConf(),
        }
        if rank:
            methods["lora"] = LoraConf(rank=rank)
        return Adapter.build(AdapterConf(methods=methods), self.host, features=visual["clip"])

    def pairs(self):
        """(official name, our parameter) of everything but the prompts' table, which is one tensor there."""
        adapter, projection = self.adapter, self.adapter["projection"]
        for ours, theirs in PROJECTION.items():
            for kind, parameter in getattr(projection, ours).named_parameters():
                yield f"{theirs}.{kind}", parameter
        yield "visual_query.weight", projection.queries
        for name, parameter in projection.blocks.named_parameters():
            yield f"visual_blocks.{name}", parameter
        for index, layer in adapter["prompts"].items():
            yield f"llama.layers.{index}.attention.gate", layer.gate
            if self.about["lora_rank"]:
                yield f"llama.layers.{index}.attention.new_gate", layer.factor
        yield "llama.norm.weight", adapter["norms"][str(FINAL)]["norm"].weight
        for index in range(self.about["n_layers"]):
            yield from self._layer_pairs(index)

    def _layer_pairs(self, index):
        adapter, prefix = self.adapter, f"llama.layers.{index}"
        yield f"{prefix}.attention_norm.weight", adapter["norms"][str(index)]["input_layernorm"].weight
        yield f"{prefix}.ffn_norm.weight", adapter["norms"][str(index)]["post_attention_layernorm"].weight
        for kind in BIASED:
            yield f"{prefix}.{LINEARS[kind].format('')}.bias", adapter["bias_scale"][str(index)][kind].bias
        if self.about["lora_rank"]:
            for kind, path in LINEARS.items():
                pair = adapter["lora"][str(index)][kind]
                yield f"{prefix}.{path.format('lora_')}_l1.weight", pair.down.weight
                yield f"{prefix}.{path.format('lora_')}_l2.weight", pair.up.weight

    def ours(self, name, tensor):
        """Rows that belong to queries and keys, from Meta's order to that of `transformers`."""
        if name.endswith(("wq.bias", "lora_wq_l2.weight", "lora_wk_l2.weight")):
            return rows_to_halves(tensor.reshape(len(tensor), -1), self.about["n_heads"]).reshape(tensor.shape)
        return tensor

    def load_prompts(self):
        table = self.tensors["adapter.adapter_query.weight"].view(self.about["adapted_layers"], -1, self.about["dim"])
        with torch.no_grad():
            for index, layer in self.adapter["prompts"].items():
                layer.prompt.copy_(table[int(index) - self.first])
        return self

    def visual_tokens(self):
        return self.adapter.visual_tokens(list(self.tensors["input.clip_features"]), "cpu")

    def call(self, keep=False):
        return self.adapter.call(self.visual_tokens(), keep)


@pytest.fixture(params=["bias", "lora_bias"])
def name(request):
    return request.param


def close(ours, expected, tolerance=2e-5):
    return (ours - expected).norm() <= tolerance * expected.norm() + 1e-9


def test_the_visual_query_is_the_official_one(name):
    golden = Golden(name).load_prompts()
    tokens = golden.visual_tokens().tokens
    assert (tokens - golden.tensors["expect.visual_query"]).abs().max() < 2e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_every_gradient_are_the_official_ones(name, attention):
    golden = Golden(name, attention).load_prompts()
    with golden.host.adapter_slot.during(golden.call()):
        logits = golden.host(input_ids=golden.tensors["input.tokens"]).logits
    labels = golden.tensors["input.labels"].masked_fill(golden.tensors["input.labels"] == 0, -100)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    assert (logits - golden.tensors["expect.logits"]).abs().max() < 5e-5
    assert abs(loss - golden.tensors["expect.loss"]) < 2e-6
    prompts = torch.cat([layer.prompt.grad for layer in golden.adapter["prompts"].values()])
    assert close(prompts, golden.tensors["expect.grad.adapter_query.weight"])
    compared = {"adapter_query.weight"}
    for official, parameter in golden.pairs():
        expected = golden.ours(official, golden.tensors[f"expect.grad.{official}"]).view_as(parameter)
        assert close(parameter.grad, expected), official
        compared.add(official)
    unused = {f"llama.layers.0.attention.{gate}" for gate in ("gate", "new_gate")}  # in the file, never used
    with_gradient = {key.removeprefix("expect.grad.") for key in golden.tensors if key.startswith("expect.grad.")}
    assert with_gradient - compared <= unused


def test_the_greedy_continuation_is_the_official_one(name):
    golden = Golden(name).load_prompts()
    prompts, expected = golden.tensors["input.prompts"], golden.tensors["expect.greedy"]
    with torch.no_grad(), golden.host.adapter_slot.during(golden.call(keep=True)):
        tokens = golden.host.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=expected.shape[1] - prompts.shape[1],
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    assert torch.equal(tokens, expected)
