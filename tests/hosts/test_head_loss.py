"""The chunked loss: value and gradient of the plain one, with one chunk of logits in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmadapter.hosts import head_loss
from mmadapter.hosts.head_loss import has_plain_head, summed_cross_entropy
from tests.families import FAMILIES, tiny_host

ROWS, WIDTH, WORDS = 300, 16, 70


def case(bias: bool = False, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, WORDS, bias=bias).requires_grad_(False).to(dtype)
    hidden = (5 * torch.randn(ROWS, WIDTH)).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, WORDS, (ROWS,))


def plain(hidden, head, targets):
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [ROWS, 128, 7])
def test_value_and_gradient_are_those_of_the_plain_loss(rows, bias, monkeypatch):
    monkeypatch.setattr(head_loss, "AT_ONCE", 0)
    monkeypatch.setattr(head_loss, "FEWEST_ROWS", rows)
    hidden, head, targets = case(bias)
    expected = plain(hidden, head, targets)
    (gradient,) = torch.autograd.grad(3.0 * expected, hidden)
    ours = summed_cross_entropy(hidden, head, targets)
    (our_gradient,) = torch.autograd.grad(3.0 * ours, hidden)
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert (our_gradient - gradient).norm() < 1e-6 * gradient.norm()
    assert ours.dtype == torch.float32 and not summed_cross_entropy(hidden.detach(), head, targets).requires_grad


def test_in_bfloat16_it_is_as_near_as_the_plain_loss():
    hidden, head, targets = case(dtype=torch.bfloat16)
    exact = hidden.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(plain(exact, head.float(), targets), exact)
    head.to(torch.bfloat16)
    apart = [
        float((torch.autograd.grad(loss(hidden, head, targets), hidden)[0].float() - gradient).norm() / gradient.norm())
        for loss in (plain, summed_cross_entropy)
    ]
    assert apart[1] < 1.1 * apart[0] < 0.02


def test_no_row_is_a_loss_of_zero_with_a_gradient():
    hidden, head, targets = case()
    loss = summed_cross_entropy(hidden[:0], head, targets[:0])
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert float(loss.detach()) == 0 and gradient.abs().max() == 0


def test_a_number_that_is_not_finite_shows_in_the_loss():
    hidden, head, targets = case()
    with torch.no_grad():
        hidden[3, 2] = float("inf")
    assert not torch.isfinite(summed_cross_entropy(hidden, head, targets))


def test_gemma2_caps_its_logits_so_its_own_forward_makes_them():
    assert [name for name in FAMILIES if not has_plain_head(tiny_host(name))] == ["gemma2"]
