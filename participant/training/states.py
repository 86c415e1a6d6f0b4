"""Hidden states of rows of tokens, by the quickest way that a model is found to have.

Quick: fused layers, and a tree of tokens in place of padded rows. Plain: the library's own layers on padded rows, for
models whose attention or positions are more than is known here. Which one it is, a probe decides, once for a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from participant.training import attention
from participant.training.attention import Rows, UnknownAttention
from participant.training.fused import fused_layers
from participant.training.model import AdaptedModel
from participant.training.packing import token_tree

# Relative, of a row's norm. bfloat16 rounds in every step of every layer, in either way: 0.01 to 0.03 was seen where
# all is right, over 0.1 where a row's positions or one of its keys are wrong.
_TOLERANCES: Final = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
_PROBE_LENGTH: Final = 24
_PROBE_SHARED: Final = 9


class States(Protocol):
    """From token rows to last hidden states."""

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[rows, longest, width]; beyond a row's end there is something finite."""
        ...


class PlainStates:
    """The library's layers on rows that are padded on the right."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return self._model.hidden(self._model.batch(rows))


class TreeStates:
    """One pass over the rows' token tree. Only within `fused_layers` is it the quickest."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        model = self._model
        tree = token_tree(rows)
        nodes = torch.from_numpy(tree.nodes).to(model.device)
        with _attending(model):
            output = model.causal.base_model(
                input_ids=torch.from_numpy(tree.ids).to(model.device).unsqueeze(0),
                position_ids=torch.from_numpy(tree.positions).to(model.device).unsqueeze(0),
                use_cache=False,
                rows=Rows(nodes, torch.from_numpy(tree.first).to(model.device)),
            )
        states = output.last_hidden_state
        assert isinstance(states, Tensor)  # noqa: S101  (for mypy: the library says Any)
        return states[0].index_select(0, nodes.reshape(-1)).view(*nodes.shape, -1)


@contextlib.contextmanager
def quick_states(model: AdaptedModel) -> Iterator[States]:
    """The model's states by the quickest way that gives what the plain way gives. Within, its layers may be fused."""
    plain = PlainStates(model)
    probe = _probe(model.causal.config.get_text_config().vocab_size)
    with torch.no_grad():
        wanted = plain.hidden(probe)
    with fused_layers(model.causal):
        if _agrees(TreeStates(model), probe, wanted):
            yield TreeStates(model)
            return
    yield plain


@contextlib.contextmanager
def _attending(model: AdaptedModel) -> Iterator[None]:
    """The token tree's attention for one pass: others (generation, with its cache) keep the model's own."""
    config = model.causal.config
    before = config._attn_implementation
    config._attn_implementation = attention.NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _probe(vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """Rows of which two begin alike: a model that took one for the other, or a place for another, would show."""
    ids = [(7919 * number + 13) % vocabulary for number in range(3 * _PROBE_LENGTH)]
    one, other, third = (tuple(ids[first : first + _PROBE_LENGTH]) for first in range(0, len(ids), _PROBE_LENGTH))
    return one, (*one[:_PROBE_SHARED], *other[: _PROBE_LENGTH // 2]), third


def _agrees(states: States, probe: Sequence[Sequence[int]], wanted: Tensor) -> bool:
    try:
        with torch.no_grad():
            found = states.hidden(probe)
    except (UnknownAttention, TypeError, ValueError, RuntimeError):
        return False
    for index, row in enumerate(probe):
        one, other = found[index, : len(row)].float(), wanted[index, : len(row)].float()
        if not float((one - other).norm()) <= _TOLERANCES[wanted.dtype] * float(other.norm()):
            return False
    return True
