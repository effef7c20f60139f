"""LoRA is what `peft` computes, on hosts of several kinds: values, gradients and the number of parameters."""

import pytest
import torch

from mmadapter.hosts.families import decoder_layers, family_of
from mmadapter.methods.groups import trainable_parameters
from mmadapter.methods.settings import LoraConf
from tests.families import adapted_logits, adapter_of, random_tokens, routed_host, tiny_host

peft = pytest.importorskip("peft")


def pefts(name, adapter):
    """The same host with peft's LoRA on the same linear layers, with our matrices in it."""
    host = tiny_host(name)
    paths = family_of(host.config.model_type).linears
    linears = {
        id(layer.get_submodule(path)): (str(index), kind)
        for index, layer in enumerate(decoder_layers(host))
        for kind, path in paths.items()
        if kind in adapter["lora"][str(index)]
    }
    places = {path: linears[id(module)] for path, module in host.named_modules() if id(module) in linears}
    model = peft.get_peft_model(host, peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(places), lora_dropout=0.0))
    pairs = {}
    for path, (layer, kind) in places.items():
        theirs, ours = model.base_model.model.get_submodule(path), adapter["lora"][layer][kind]
        with torch.no_grad():
            theirs.lora_A["default"].weight.copy_(ours.down.weight)
            theirs.lora_B["default"].weight.copy_(ours.up.weight)
        pairs[layer, kind] = (theirs.lora_A["default"].weight, theirs.lora_B["default"].weight)
    return model, pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "on"), [("llama_bias", ["all"]), ("gpt_neox", ["qkv", "down"]), ("phi3", ["all"])])
def test_logits_and_gradients_are_pefts(name, on, dtype):
    host = routed_host(name).to(dtype)
    adapter = adapter_of(host, lora=LoraConf(rank=3, alpha=6, on=on))
    tokens = random_tokens(2, 9)
    assert torch.equal(adapted_logits(host, adapter, tokens), tiny_host(name).to(dtype)(input_ids=tokens).logits)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in trainable_parameters(adapter):
            item.parameter.add_(torch.randn(item.parameter.shape, generator=generator) * 0.2)
    model, pairs = pefts(name, adapter)
    model = model.to(dtype)
    for pair in (parameter for found in pairs.values() for parameter in found):
        pair.data = pair.data.float()  # as peft itself keeps them
    for (layer, kind), (down, up) in pairs.items():
        with torch.no_grad():
            down.copy_(adapter["lora"][layer][kind].down.weight)
            up.copy_(adapter["lora"][layer][kind].up.weight)
    ours, theirs = adapted_logits(host, adapter, tokens), model(input_ids=tokens).logits
    assert torch.equal(ours, theirs)
    assert (ours - tiny_host(name).to(dtype)(input_ids=tokens).logits).abs().max() > 1e-2
    ours.float().pow(2).sum().backward()
    theirs.float().pow(2).sum().backward()
    for (layer, kind), (down, up) in pairs.items():
        part = adapter["lora"][layer][kind]
        assert torch.equal(part.down.weight.grad, down.grad) and torch.equal(part.up.weight.grad, up.grad)
    assert len(pairs) == sum(1 for _ in adapter["lora"].placed())


def test_it_is_drawn_as_peft_draws_it_but_from_the_seed():
    host = routed_host("llama_gqa")
    one, same, other = (adapter_of(host, seed, lora=LoraConf(rank=4, on=["q"])) for seed in (1, 1, 2))
    down = [adapter["lora"]["2"]["q"].down.weight for adapter in (one, same, other)]
    assert torch.equal(down[0], down[1]) and not torch.equal(down[0], down[2])
    bound = 32**-0.5
    assert down[0].abs().max() <= bound and down[0].abs().max() > 0.9 * bound
    assert not one["lora"]["2"]["q"].up.weight.any()
