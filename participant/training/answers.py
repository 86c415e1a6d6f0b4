"""The loss of answer tokens, from hidden states: the head runs where a token is answered, and nowhere else.

Knows the adapted model and token rows; nothing of steps and records' files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from participant.training.model import AdaptedModel, TokenBatch
from participant.training.tokens import Encoded

# Answer positions whose logits are in memory at once: 256 rows of a 50,000-word vocabulary are 50 MB.
HEAD_ROWS: Final = 256


def answer_losses(model: AdaptedModel, hidden: Tensor, batch: TokenBatch, is_answer: Tensor) -> Tensor:
    """Nats per answer token, float32[n], rows in order; the head runs on positions before an answer token only.

    hidden: [rows, length, width]. is_answer: bool[rows, length]. A token at position 0 has nothing before it: no loss.
    """
    states, targets = answer_states(hidden, batch, is_answer)
    parts = [
        functional.cross_entropy(
            model.logits(states[first : first + HEAD_ROWS]), targets[first : first + HEAD_ROWS], reduction="none"
        )
        for first in range(0, len(targets), HEAD_ROWS)
    ]
    return torch.cat(parts)


def answer_loss(model: AdaptedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Nats over all answer tokens, a scalar. states: [n, width]; targets: int64[n], see `answer_states`."""
    total: Tensor = _AnswerLoss.apply(states, targets, model)  # type: ignore[no-untyped-call]
    return total


class _AnswerLoss(torch.autograd.Function):
    """Nats over all answer tokens. Its gradient is made part by part on the way forward, so that no logits are kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, states: Tensor, targets: Tensor, model: AdaptedModel) -> Tensor:
        total = torch.zeros((), device=states.device)
        by_states = torch.empty_like(states)
        for first in range(0, len(targets), HEAD_ROWS):
            part = slice(first, first + HEAD_ROWS)
            with torch.enable_grad():
                leaf = states[part].detach().requires_grad_()
                loss = functional.cross_entropy(model.logits(leaf), targets[part], reduction="sum")
            [by_states[part]] = torch.autograd.grad(loss, leaf)
            total += loss.detach()
        ctx.save_for_backward(by_states)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [by_states] = ctx.saved_tensors
        return by_states * gradients[0], None, None


def answer_states(hidden: Tensor, batch: TokenBatch, is_answer: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that predict answer tokens, [n, width], and these tokens, int64[n]."""
    predicts = is_answer[:, 1:].reshape(-1).nonzero().squeeze(1)
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, predicts)
    return states, batch.ids[:, 1:].reshape(-1).index_select(0, predicts)


def answer_flags(model: AdaptedModel, records: Sequence[Encoded], length: int) -> Tensor:
    """bool[rows, length]: where the loss counts."""
    flags = torch.zeros((len(records), length), dtype=torch.bool)
    for row, record in enumerate(records):
        flags[row, : len(record.ids)] = torch.tensor(record.is_answer, dtype=torch.bool)
    return flags.to(model.device)
