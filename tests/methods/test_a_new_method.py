"""A method that is defined here alone, by a register line and a class, trains, is saved, loaded and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from mmadapter.errors import InputError
from mmadapter.methods import METHODS, AdapterConf
from mmadapter.methods.adapter import Adapter, Method
from mmadapter.methods.groups import trainable_parameters
from mmadapter.methods.settings import BiasScaleConf, LoraConf, MethodConf
from mmadapter.settings import number, plain, typed
from tests.families import adapted_logits, random_tokens, routed_host, tiny_host
from tests.models import batch_of, sample, tiny_tokenizer


@dataclass
class SeriesConf(MethodConf):
    ROLES: ClassVar[tuple[str, ...]] = ("bottleneck",)

    width: int = number(4, at_least=1)
    at: str = plain("ffn_out")
    beside: bool = plain(False)


class Bottleneck(nn.Module):
    """y + A(y), or beside the module: y + A(x)."""

    ROLE = "bottleneck"

    def __init__(self, inputs, outputs, settings, generator):
        super().__init__()
        self.beside = settings.beside
        self.down, self.up = nn.Linear(inputs, settings.width), nn.Linear(settings.width, outputs)
        nn.init.normal_(self.down.weight, generator=generator)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, base, hidden):
        output = base(hidden)
        read = hidden if self.beside else output
        return output + self.up(torch.relu(self.down(read.float()))).to(output.dtype)


def build(settings, context):
    host = context.host
    sizes = (host.width, host.width)
    for layer in range(host.depth):
        host.module(layer, settings.at)  # refuses an unknown place
    return Method({(n, settings.at): Bottleneck(*sizes, settings, context.generator) for n in range(host.depth)})


@pytest.fixture
def series():
    METHODS.add("series", SeriesConf, build)
    yield
    METHODS.remove("series")


def adapter_on(host, **methods):
    return Adapter.build(AdapterConf(methods=methods), host, seed=3)


@pytest.mark.parametrize(("at", "beside"), [("ffn_out", False), ("attention_out", False), ("ffn", True)])
@pytest.mark.parametrize("name", ["llama_gqa", "gpt_neox"])
def test_a_series_and_a_parallel_adapter_start_as_the_host_and_act_when_they_are_open(series, name, at, beside):
    host, tokens = routed_host(name), random_tokens(2, 9)
    plain_logits = tiny_host(name)(input_ids=tokens).logits
    adapter = adapter_on(host, series=SeriesConf(at=at, beside=beside))
    assert torch.equal(adapted_logits(host, adapter, tokens), plain_logits)
    with torch.no_grad():
        for _, _, part in adapter["series"].placed():
            part.up.weight.normal_(generator=torch.Generator().manual_seed(7))
    assert (adapted_logits(host, adapter, tokens) - plain_logits).abs().max() > 1e-3
    assert torch.equal(host(input_ids=tokens).logits, plain_logits)


def test_parts_of_several_methods_at_one_place_chain_in_the_order_of_the_register(series):
    """bias_scale(lora(linear)), and the new method around both, whatever the order in the settings."""
    host = routed_host("llama_gqa")
    methods = {"series": SeriesConf(), "bias_scale": BiasScaleConf(bias=["down"], scale=["down"]), "lora": LoraConf(2)}
    adapter = adapter_on(host, **methods)
    assert list(adapter) == ["lora", "bias_scale", "series"]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for item in trainable_parameters(adapter):
            item.parameter.add_(torch.randn(item.parameter.shape, generator=generator) * 0.1)
    hidden = torch.randn(3, 48, generator=generator)
    lora, shift = adapter["lora"]["1"]["down"], adapter["bias_scale"]["1"]["down"]
    series_part, linear = adapter["series"]["1"]["ffn_out"], tiny_host("llama_gqa").model.layers[1].mlp.down_proj
    inner = linear(hidden) + lora.factor * hidden @ lora.down.weight.T @ lora.up.weight.T
    middle = shift.scale * (inner + shift.bias)
    expected = middle + series_part.up(torch.relu(series_part.down(middle)))
    wrapped = host.model.layers[1].mlp.down_proj
    with host.adapter_slot.during(adapter.call()):
        assert torch.allclose(wrapped(hidden), expected, atol=1e-5)
    assert torch.equal(wrapped(hidden), linear(hidden))


def test_an_unknown_place_is_refused_with_the_familys_places(series):
    with pytest.raises(InputError, match=r"gpt_neox host has no place 'q'. .*attention, qkv, o, up, down, ffn, atten"):
        adapter_on(routed_host("gpt_neox"), series=SeriesConf(at="q"))


def test_its_settings_are_checked_and_its_roles_known_without_building_it(series):
    conf = typed(AdapterConf, {"series": {"width": 8}, "groups": {"all": {"roles": ["bottleneck"]}}}, "adapter")
    assert conf.roles() == ["bottleneck"] and not list(conf.contradictions("adapter"))
    with pytest.raises(
        InputError, match="There is no setting 'adapter.series.widht'. Did you mean adapter.series.width"
    ):
        typed(AdapterConf, {"series": {"widht": 8}}, "adapter")


def test_it_trains_and_is_saved_and_loaded(series, tmp_path):
    from mmadapter.model import AdaptedModel

    def model():
        host = routed_host("llama_gqa")
        return AdaptedModel(host, tiny_tokenizer(), adapter_on(host, series=SeriesConf()))

    trained, fresh = model(), model()
    batch = batch_of(trained, [sample("what is red", "a circle")])
    optimizer = torch.optim.AdamW(trained.adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = trained(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained.save(tmp_path / "adapter")
    fresh.load_adapter(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(trained(batch), fresh(batch))
    assert trained.generate("what is red", max_new_tokens=3, template="plain")
    METHODS.remove("series")
    with pytest.raises(InputError, match="There is no setting 'adapter.series'"):
        model_without = fresh.load_adapter(tmp_path / "adapter")  # noqa: F841
    METHODS.add("series", SeriesConf, build)
