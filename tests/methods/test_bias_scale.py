"""The bias and the scale around a linear layer: value, gradients, and what is kept for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmadapter.methods.bias_scale import NEAR_0, BiasScale

INPUTS, OUTPUTS, TOKENS = 6, 10, 7


def case(bias: bool, dtype: torch.dtype = torch.float32, smallest: float = 0.5):
    """A part with a bias and a scale that are not where they start, its frozen layer, an input, and a gradient."""
    torch.manual_seed(0)
    part = BiasScale(INPUTS, OUTPUTS, bias=bias)
    with torch.no_grad():
        part.scale.uniform_(smallest, 2.0)
        part.scale[::2] *= -1
        part.scale[0] = smallest
        if bias:
            part.bias.normal_()
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False).to(dtype).requires_grad_(False)
    hidden = torch.randn(2, TOKENS, INPUTS).to(dtype).requires_grad_()
    return part, linear, hidden, torch.randn(2, TOKENS, OUTPUTS).to(dtype)


def gradients(part: BiasScale, linear: nn.Linear, hidden: torch.Tensor, output: torch.Tensor, of: torch.Tensor):
    return torch.autograd.grad(output, [hidden, *part.parameters()], of)


def plain(part: BiasScale, linear: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    shifted = linear(hidden).float()
    if part.bias is not None:
        shifted = shifted + part.bias
    return (shifted * part.scale).to(hidden.dtype)


@pytest.mark.parametrize("smallest", [0.5, NEAR_0 / 2, 0.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype, exact", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_value_and_gradients_are_those_of_the_formula(dtype, exact, bias, smallest):
    given = case(bias, dtype, smallest)
    part, linear, hidden, of = given
    ours, expected = part(linear, hidden), plain(*given[:3])
    assert ours.dtype == dtype and torch.allclose(ours, expected, rtol=exact, atol=exact)
    for one, other in zip(gradients(*given[:3], ours, of), gradients(*given[:3], expected, of), strict=True):
        assert one.dtype == other.dtype and (one - other).norm() <= exact * other.norm()


def test_in_float32_nothing_is_kept_but_the_result_itself():
    part, linear, hidden, _ = case(bias=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        result = part(linear, hidden)
    large = [tensor for tensor in kept if tensor.numel() > INPUTS * OUTPUTS]
    assert [tensor.data_ptr() for tensor in large] == [result.data_ptr()]


def test_a_frozen_scale_or_bias_has_no_gradient_and_the_others_have_theirs():
    part, linear, hidden, of = case(bias=True)
    part.scale.requires_grad_(False)
    part(linear, hidden).backward(of)
    assert part.scale.grad is None and torch.allclose(part.bias.grad, (of * part.scale).sum((0, 1)), rtol=1e-5)


def test_a_second_derivative_is_refused_and_not_wrong():
    part, linear, hidden, of = case(bias=True)
    of.requires_grad_()
    (first,) = torch.autograd.grad(part(linear, hidden), part.scale, of, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
