"""Direct preference optimisation: the chosen answer of a pair is to gain on the rejected one.

Rafailov et al. 2023, arXiv 2305.18290, eq. 7: -log sigmoid(beta ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r)))),
log probabilities summed over an answer's tokens. The reference is the model without what the run trains: the base
model, and what lies frozen beneath. That is also where a run begins: every method's first adapter adds nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from common.errors import DataInvalid
from participant.training.answers import answer_flags, answer_losses
from participant.training.model import AdaptedModel
from participant.training.states import States
from participant.training.tokens import Encoded


class Preferences:
    """DPO's steps. The reference's margin of a pair is computed once in a job, the pair alone: so its bits do not hang
    on what it is batched with, and a job that is resumed goes on with the same."""

    def __init__(self, model: AdaptedModel, states: States, *, beta: float, micro_batch_size: int) -> None:
        self._model = model
        self._states = states
        self._beta = beta
        self._pairs_at_once = max(1, micro_batch_size // 2)
        self._references: dict[int, float] = {}

    def fill_gradients(self, records: Sequence[Encoded]) -> float:
        """Gradients of the mean loss of these pairs, which is returned."""
        references = self._reference_margins(records)
        loss = 0.0
        for first in range(0, len(records), self._pairs_at_once):
            part = slice(first, first + self._pairs_at_once)
            own = margins(self._model, self._states, records[part])
            mean = dpo_losses(own, references[part], beta=self._beta).sum() / len(records)
            mean.backward()
            loss += float(mean.detach())
        return loss

    def _reference_margins(self, records: Sequence[Encoded]) -> Tensor:
        new = [record for record in records if id(record) not in self._references]
        with torch.no_grad(), without_adapter(self._model):
            for record in new:
                self._references[id(record)] = float(margins(self._model, self._states, [record]))
        return torch.tensor([self._references[id(record)] for record in records], device=self._model.device)


def dpo_losses(own: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """float32[pairs], from the margins log p(chosen) - log p(rejected) of the model and of the reference."""
    return -functional.logsigmoid(beta * (own - reference))


def margins(model: AdaptedModel, states: States, pairs: Sequence[Encoded]) -> Tensor:
    """log p(chosen) - log p(rejected) of each pair, float32[pairs], in nats over all tokens of the answers.

    Raises DataInvalid for a record that is no pair.
    """
    rows = [row for pair in pairs for row in (pair, _rejected(pair))]
    ids = [row.ids for row in rows]
    batch = model.batch(ids)
    losses = answer_losses(model, states.hidden(ids), batch, answer_flags(model, rows, batch.ids.shape[1]))
    sums = torch.stack([part.sum() for part in losses.split([row.answer_tokens for row in rows])])
    return sums[1::2] - sums[0::2]


@contextlib.contextmanager
def without_adapter(model: AdaptedModel) -> Iterator[None]:
    """Within, the adapter adds nothing; after, its parameters have their bits again."""
    kept = {name: parameter.detach().clone() for name, parameter in model.movable.items()}
    try:
        with torch.no_grad():
            for parameter in model.movable.values():
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.movable.items():
                parameter.copy_(kept[name])


def _rejected(pair: Encoded) -> Encoded:
    if pair.rejected is None:
        raise DataInvalid(f"line {pair.record.line} has no rejected answer, and preference tuning needs one")
    return pair.rejected
