"""Attention of a token tree: rows are laid out side by side for the products, and nowhere else.

Registered with transformers as an attention of its own. Scores and their softmax are float32 whatever the model is;
probabilities are computed again for the backward pass instead of kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from transformers import AttentionInterface

NAME: Final = "accord_token_tree"
# Above it the scores of one row would fill the cache; torch's own attention goes through them in blocks.
_MOST_OWN_LENGTH: Final = 512


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows' tokens lie among the nodes: int64[rows, longest] and int64[nodes], see `packing.TokenTree`."""

    nodes: Tensor
    first: Tensor


class UnknownAttention(Exception):
    """This model's attention is more than scaled causal products. Ends in the padded way, never with a caller."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows: Rows | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """query: [1, heads, nodes, width]; key, value: [1, kv_heads, nodes, width] -> [1, nodes, heads, width].

    Raises UnknownAttention where the model asks for anything that is not done here.
    """
    if rows is None or attention_mask is not None or dropout or query.shape[0] != 1:
        raise UnknownAttention
    if any(extra.get(name) is not None for name in ("softcap", "s_aux", "sliding_window", "position_bias")):
        raise UnknownAttention
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu" and rows.nodes.shape[1] <= _MOST_OWN_LENGTH:
        short: Tensor = _ShortRows.apply(  # type: ignore[no-untyped-call]
            query, key, value, rows.nodes, rows.first, scale
        )
        return short, None
    return _long_rows(query, key, value, rows, scale), None


def _long_rows(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float) -> Tensor:
    count, length = rows.nodes.shape
    flat = rows.nodes.reshape(-1)

    def laid_out(states: Tensor) -> Tensor:
        return states[0].index_select(1, flat).view(states.shape[1], count, length, -1).transpose(0, 1)

    found = functional.scaled_dot_product_attention(
        laid_out(query), laid_out(key), laid_out(value), is_causal=True, scale=scale, enable_gqa=True
    )
    return found.transpose(1, 2).flatten(0, 1).index_select(0, rows.first).unsqueeze(0)


class _ShortRows(torch.autograd.Function):
    """softmax(scale q k^T, causal) v, row by row, in five batched products."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, nodes: Tensor, first: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, nodes, first)
        ctx.scale = scale  # type: ignore[attr-defined]
        laid = _Laid(query, key, value, nodes)
        found = torch.bmm(laid.probabilities(scale).to(value.dtype), laid.value)
        return laid.from_rows(found).index_select(0, first).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, nodes, first = ctx.saved_tensors
        laid = _Laid(query, key, value, nodes)
        probabilities = laid.probabilities(ctx.scale)
        # Only a node's first place was read; its other places, and the padding, hear nothing.
        spread = gradients[0].new_zeros((nodes.numel(), *gradients[0].shape[2:]))
        spread.index_copy_(0, first, gradients[0][0])
        outer = laid.to_rows(spread)
        by_value = torch.bmm(probabilities.to(value.dtype).transpose(1, 2), outer)
        by_probability = torch.bmm(outer, laid.value.transpose(1, 2)).float()
        by_score = torch._softmax_backward_data(by_probability, probabilities, -1, torch.float32)
        by_score = by_score.mul_(ctx.scale).to(query.dtype)
        by_query = torch.bmm(by_score, laid.key)
        by_key = torch.bmm(by_score.transpose(1, 2), laid.query)
        return laid.summed(by_query), laid.summed(by_key), laid.summed(by_value), None, None, None


class _Laid:
    """Nodes laid out as rows.

    query: [rows * kv_heads, group * length, width]; key, value: [rows * kv_heads, length, width].
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, nodes: Tensor) -> None:
        self._count, self._length = nodes.shape
        self._kv_heads = key.shape[1]
        self._group = query.shape[1] // self._kv_heads
        self._nodes = nodes.reshape(-1)
        self._total = query.shape[2]
        self.query = self.to_rows(query[0].transpose(0, 1).index_select(0, self._nodes))
        self.key = self.to_rows(key[0].transpose(0, 1).index_select(0, self._nodes))
        self.value = self.to_rows(value[0].transpose(0, 1).index_select(0, self._nodes))

    def probabilities(self, scale: float) -> Tensor:
        """float32[rows * kv_heads, group * length, length]. Padding comes after every token, so causal hides it."""
        hidden = torch.full((self._length, self._length), -torch.inf, device=self.query.device).triu_(1)
        mask = hidden.repeat(self._group, 1)
        scores = torch.baddbmm(mask, self.query.float(), self.key.float().transpose(1, 2), alpha=scale)
        return torch.softmax(scores, dim=-1)

    def to_rows(self, places: Tensor) -> Tensor:
        """[rows * length, heads, width] -> [rows * kv_heads, group * length, width], heads of one key side by side."""
        width = places.shape[-1]
        laid = places.reshape(self._count, self._length, self._kv_heads, -1, width).permute(0, 2, 3, 1, 4)
        return laid.reshape(self._count * self._kv_heads, -1, width)

    def from_rows(self, laid: Tensor) -> Tensor:
        """The way back: [rows * length, heads, width]."""
        width = laid.shape[-1]
        places = laid.reshape(self._count, self._kv_heads, -1, self._length, width).permute(0, 3, 1, 2, 4)
        return places.reshape(self._count * self._length, -1, width)

    def summed(self, laid: Tensor) -> Tensor:
        """Gradients at places, summed by node: [1, heads, nodes, width]."""
        places = self.from_rows(laid)
        total = places.new_zeros((self._total, *places.shape[1:]))
        return total.index_add_(0, self._nodes, places).transpose(0, 1).unsqueeze(0)


AttentionInterface.register(NAME, tree_attention)
