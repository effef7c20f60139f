"""Visual tokens: how many, from which numbers, and that an attention can tell them and their pictures apart."""

import pytest
import torch

from mmadapter.hosts.places import HostPlaces
from mmadapter.methods.adapter import BuildContext
from mmadapter.methods.groups import trainable_parameters
from mmadapter.methods.projection import MlpProjection, build, draw
from mmadapter.methods.settings import ProjectionConf
from tests.families import WIDTH, routed_host

SIZES = {"hidden": 16, "tokens": 6, "blocks": 2, "heads": 4}


def drawn(kind, seed=0):
    host = HostPlaces(routed_host("llama_gqa"))
    generator = torch.Generator().manual_seed(seed)
    return build(ProjectionConf(kind, **SIZES), BuildContext(host, generator, features=12))


def pictures(kind, rows=2, seed=3):
    shape = (rows, 12) if kind == "mlp" else (rows, 9, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_weights(tokens, queries):
    """(pictures, queries, tokens)"""
    return (queries @ tokens.mT / tokens.shape[-1] ** 0.5).softmax(-1)


both_kinds = pytest.mark.parametrize("kind", ["mlp", "query_transformer"])


def test_the_papers_projection_has_561216_parameters():
    projection = MlpProjection(4608, 64, 4096, device="meta")
    assert sum(parameter.numel() for parameter in projection.parameters()) == 561_216


def test_one_token_is_drawn_as_torch_draws_linear_layers_in_the_order_of_the_layers():
    projection = MlpProjection(12, 16, 24)
    draw(projection, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    for layer, inputs in ((projection.narrow, 12), (projection.widen, 16)):
        for tensor in (layer.weight, layer.bias):
            assert torch.equal(
                tensor, torch.empty_like(tensor).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            )
    assert projection.widen.weight.shape == (24, 16)


def test_a_token_of_the_mlp_has_rows_of_its_own_in_the_last_layer():
    projection = drawn("mlp")
    before = projection(pictures("mlp"))
    with torch.no_grad():
        projection.widen.weight[WIDTH : 2 * WIDTH] += 1.0
    moved = (projection(pictures("mlp")) - before).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, True, False, False, False, False]


@both_kinds
def test_tokens_are_float32_of_the_hosts_width(kind):
    for dtype in (torch.float32, torch.bfloat16):
        tokens = drawn(kind)(pictures(kind).to(dtype))
        assert tokens.shape == (2, 6, WIDTH) and tokens.dtype == torch.float32


@both_kinds
def test_attention_over_the_tokens_changes_with_query_and_picture(kind):
    tokens = drawn(kind)(pictures(kind)).detach()
    queries = 4 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    weights = attention_weights(tokens, queries)
    blind = attention_weights(tokens[:1] + torch.randn(2, 1, WIDTH), queries)  # tokens plus one vector of the picture
    assert torch.allclose(blind[0], blind[1], atol=1e-5), "this is what must not happen"
    assert (weights[0] - weights[1]).abs().max() > 0.01, "the picture"
    assert (weights[:, 0] - weights[:, 1]).abs().max() > 0.01, "the query"
    assert torch.cdist(tokens, tokens).add(torch.eye(6)).min() > 0.1, "any two tokens of a picture"


@both_kinds
def test_a_rows_tokens_do_not_depend_on_its_neighbours(kind):
    projection, rows = drawn(kind), pictures(kind, rows=3)
    assert torch.allclose(projection(rows)[1:2], projection(rows[1:2]), atol=1e-6)


@both_kinds
def test_every_parameter_learns_in_the_role_of_the_projection(kind):
    projection = drawn(kind)
    projection(pictures(kind)).pow(3).sum().backward()
    trainable = trainable_parameters(projection)
    assert {item.role for item in trainable} == {"visual_projection"}
    assert len(trainable) == len(list(projection.parameters()))
    assert all(item.parameter.grad is not None and item.parameter.grad.abs().sum() > 0 for item in trainable)


@both_kinds
def test_the_draw_is_the_generators_alone(kind):
    torch.manual_seed(0)
    first = drawn(kind).state_dict()
    torch.manual_seed(1)
    again, other = drawn(kind).state_dict(), drawn(kind, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all("norm" in name or not torch.equal(first[name], other[name]) for name in first)
