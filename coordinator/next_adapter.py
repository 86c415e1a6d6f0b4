"""The next global adapter from an opened sum: the strategy moves what was sent, all else is copied, in constant memory.

Beside the adapter grow the server optimiser's state vectors, of the tensors that ever move, and, where the round sums
extras, its whole mean vector. Integers are summed, so doing it again after a crash gives the same bits.

A long sum need not be done again: what is made of it becomes durable every so often (`checkpoints`), and after a kill
the sum goes on at the first chunk that is not. `work` says of which sum that is. The tail's chunk is opened anew every
time: it is one, and the others are decoded with its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from common.adapters import ADAPTER_FILE, FLOAT32_BYTES, AdapterLayout, FlatFile, FlatVector, square_norm
from common.errors import NormExceeded, StorageFailed, UpdateNotFinite
from common.methods.sent import Stretches
from common.secagg import SecaggPlan, TailSums
from common.sent import SentVector
from common.strategies import ServerOptimizer
from coordinator.aggregation import OpenSum
from coordinator.checkpoints import GrowingFiles

# Of float32: participants scale to the bound, the mean is summed up again.
NORM_SLACK: Final = 1.001
MEAN_FILE: Final = "mean.f32"
_COPIED_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """From where a round's step goes: the adapter that it trained from, and the server optimiser's state there.

    layout: of the adapter's file `base`. moving: of the state files, one for each vector by its name; None where the
    run begins, and the state is its first values.
    """

    layout: AdapterLayout
    base: Path
    moving: AdapterLayout
    state: Mapping[str, Path] | None = None


@dataclass(frozen=True, slots=True)
class NextAdapter:
    """The adapter that a round has made: its model file, its digest, and the L2 norm of the mean delta.

    state: files of the server optimiser's vectors, by name. mean: the mean of the whole sent vector as bare float32,
    where it has extras.
    """

    path: Path
    digest: str
    delta_norm: float
    state: Mapping[str, Path]
    mean: Path | None


def state_file(name: str) -> str:
    """Name of the file of a server optimiser's state vector."""
    return f"{name}.safetensors"


def make_next_adapter(
    opened: OpenSum,
    tail: TailSums,
    *,
    start: StartingPoint,
    sent: SentVector,
    optimizer: ServerOptimizer,
    max_update_norm: float,
    scratch: Path,
    work: str,
    still_ours: Callable[[], None],
) -> NextAdapter:
    """Write the next global adapter below `scratch`, and go on there with what a killed process has left.

    sent: what the round has summed. work: digest of all that decides the result's bits; what another work has left is
    thrown away. still_ours: raises LeaseLost when another process has taken the round over. Raises UpdateNotFinite or
    NormExceeded instead of making something bad, and StorageFailed.
    """
    states = {state_file(name): name for name in optimizer.initial_state}
    names = (ADAPTER_FILE, *states, *((MEAN_FILE,) if sent.extras else ()))
    moved = Stretches.of(slot for slot in start.moving.slots if slot.name in {tensor.name for tensor in sent.tensors})
    try:
        with GrowingFiles(scratch, work=work, names=names) as grown:
            adapter = _Moved(grown, ADAPTER_FILE, start.layout, sent.stretches, FlatFile.open(start.base, start.layout))
            vectors = [
                _Moved(grown, file, start.moving, moved, _before(start, name, optimizer.initial_state[name]))
                for file, name in states.items()
            ]
            for mean in opened.mean_chunks(tail, first=grown.chunks):
                still_ours()
                first, _ = opened.layout.parameters_in(grown.chunks)
                delta = mean[: max(0, sent.stretches.size - first)]
                size = delta.size
                new, state = optimizer.step(
                    adapter.before(first, size), delta, tuple(vector.before(first, size) for vector in vectors)
                )
                for file, values in zip((adapter, *vectors), (new, *state), strict=True):
                    file.append(first, values)
                if sent.extras:
                    grown.append(MEAN_FILE, mean.data)
                grown.chunk_done(square_norm(delta))
                if grown.chunks % opened.chunks_between_checkpoints == 0:
                    grown.checkpoint()
            for file in (adapter, *vectors):
                file.finish()
            digest, norm = grown.finish()[ADAPTER_FILE], math.sqrt(grown.total)
    except OSError as error:
        raise StorageFailed(f"cannot write the next adapter below {scratch}: {error.strerror}") from error
    if not math.isfinite(norm):
        raise UpdateNotFinite("the mean delta holds a NaN or an infinity")
    if norm > max_update_norm * NORM_SLACK + rounding_norm(opened.plan, tail, round_=opened.round):
        raise NormExceeded(
            f"the mean delta has L2 norm {norm:.6g}, the plan's bound is {max_update_norm:.6g}: "
            "some participant did not clip its update"
        )
    return NextAdapter(
        scratch / ADAPTER_FILE,
        digest,
        norm,
        {name: scratch / file for file, name in states.items()},
        scratch / MEAN_FILE if sent.extras else None,
    )


def rounding_norm(plan: SecaggPlan, tail: TailSums, *, round_: int) -> float:
    """Most that the fixed point's rounding can add to the mean's L2 norm: sqrt(d) * |U3| * C / (L * A).

    Where the weights are small against their cap this is much more than the float's rounding, and nobody's fault.
    """
    clips = sum(slot.size * slot.clip**2 for slot in plan.slots_of(round_))
    return math.sqrt(clips) * tail.count / (plan.lane_limit * tail.weight)


def _before(start: StartingPoint, name: str, first_value: float) -> FlatFile | float:
    return first_value if start.state is None else FlatFile.open(start.state[name], start.moving)


class _Moved:
    """One vector with its header: a copy of what was there, but for the sent elements, which come chunk by chunk."""

    def __init__(
        self, grown: GrowingFiles, name: str, layout: AdapterLayout, sent: Stretches, source: FlatFile | float
    ) -> None:
        """source: the vector before; a number is that of each of its elements."""
        self._grown, self._name, self._sent, self._source = grown, name, sent, source
        header = layout.header()
        self._header_bytes, self._parameters = len(header), layout.parameters
        if not grown.size(name):
            grown.append(name, header)

    def before(self, first: int, size: int) -> FlatVector:
        """float32[size]: what sent elements `first` and following were."""
        values = np.empty(size, dtype=np.float32)
        for part, place in self._sent.within(first, first + size):
            self._read_into(place, values[part])
        return values

    def append(self, first: int, values: FlatVector) -> None:
        """What they are now; and before each of them what lies between, unchanged."""
        for part, place in self._sent.within(first, first + values.size):
            self._copy_to(place)
            self._grown.append(self._name, values[part].data)

    def finish(self) -> None:
        self._copy_to(self._parameters)

    def _copy_to(self, stop: int) -> None:
        at = (self._grown.size(self._name) - self._header_bytes) // FLOAT32_BYTES
        for start in range(at, stop, _COPIED_ELEMENTS):
            values = np.empty(min(start + _COPIED_ELEMENTS, stop) - start, dtype=np.float32)
            self._read_into(start, values)
            self._grown.append(self._name, values.data)

    def _read_into(self, start: int, values: FlatVector) -> None:
        if isinstance(self._source, FlatFile):
            self._source.read_into(start, values)
        else:
            values.fill(self._source)
