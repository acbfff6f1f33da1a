"""Matrix products of a stack of networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def linear(bias: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """One product for each network, the same to the last bit whoever is in the stack.

    Args:
        bias: ``[M, 1, H']``.
        hidden: ``[M, B, H]``.
        weight: ``[M, H, H']``.

    Returns:
        ``[M, B, H']``.
    """
    if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
        return _own_products(bias, hidden, weight)  # (M, B, H')
    return torch.baddbmm(bias, hidden, weight)  # (M, B, H')


class _OwnProducts(torch.autograd.Function):
    """`torch.baddbmm` by one product for each member, each written where it belongs.

    In bfloat16 on a processor the product of one matrix rounds a few numbers in a million otherwise than that of
    several does, so that a member's numbers would depend on whether it is alone.
    """

    @staticmethod
    def forward(ctx: Any, bias: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        product = hidden.new_empty(*hidden.shape[:2], weight.shape[2])  # (M, B, H')
        for own in zip(bias, hidden, weight, product, strict=True):
            torch.addmm(*own[:3], out=own[3])  # (B, H')
        return product

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        hidden, weight = ctx.saved_tensors
        by_hidden = _products(slope, weight.transpose(1, 2)) if ctx.needs_input_grad[1] else None  # (M, B, H)
        return slope.sum(dim=1, keepdim=True), by_hidden, _products(hidden.transpose(1, 2), slope)


def _own_products(bias: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """Return ``[M, B, H']`` from biases ``[M, 1, H']``, units ``[M, B, H]`` and matrices ``[M, H, H']``."""
    product: Tensor = _OwnProducts.apply(bias, hidden, weight)  # type: ignore[no-untyped-call]
    return product


def _products(left: Tensor, right: Tensor) -> Tensor:
    """`torch.bmm` by one product for each member: ``[M, n, p]`` from ``[M, n, m]`` and ``[M, m, p]``."""
    product = left.new_empty(left.shape[0], left.shape[1], right.shape[2])  # (M, n, p)
    for own in zip(left, right, product, strict=True):
        torch.mm(*own[:2], out=own[2])  # (n, p)
    return product
