"""From a trained adapter to the update that is masked: the delta, its L2 bound, and what rides beside it.

delta = local - global adapter, of the tensors that move in the round; update = delta scaled down to the plan's L2
bound, and behind it the round's extras as they are. Read chunk by chunk from files, so memory does not grow with the
adapter. Knows nothing of masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from common import jsonform
from common.adapters import AdapterLayout, FlatFile, FlatVector, square_norm
from common.errors import TrainingFailed, UpdateNotFinite
from common.instructions import LEAST_WEIGHT
from common.methods.sent import Stretch, Stretches
from common.secagg import Clipping

CLIPPED_ELEMENTS: Final = "clipped_elements"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a prepared round gives to the sum beside the delta itself.

    records: training records at this site, which weigh its update. metrics: the plan's metric words, those too that
    masking will keep back; but not every member's `clipped_elements`, which masking counts. share: the weight,
    LEAST_WEIGHT to 1, where the domains' shares make it, and not the records.
    """

    records: int
    metrics: dict[str, float]
    share: float | None = None

    def to_json(self) -> str:
        return jsonform.encode(self, Contribution)

    @classmethod
    def from_json(cls, text: str | bytes) -> Contribution:
        """Raises InvalidArgument."""
        return jsonform.decode(text, cls, what="the journal's contribution")

    def weight(self, cap: int) -> float:
        """alpha, LEAST_WEIGHT to 1: the share, or records / cap; also of a site without records, in evaluations.

        So whatever cap a coordinator sets, no site's update is over 16 times another's in a sum.
        """
        if self.share is not None:
            return self.share
        return min(1.0, max(LEAST_WEIGHT, self.records / cap))


@dataclass(frozen=True, slots=True)
class Update:
    """A delta between two adapter files with the factor that brings it within its L2 bound. `norm` is before that.

    sent: which elements of the files are sent. extras: what is sent behind them, which `scale` leaves as it is.
    """

    local: FlatFile
    base: FlatFile
    sent: Stretches
    extras: FlatFile | None
    norm: float
    scale: float

    @property
    def parameters(self) -> int:
        """Elements of the whole vector."""
        return self.sent.size + (self.extras.parameters if self.extras is not None else 0)

    @property
    def sent_norm(self) -> float:
        """L2 norm of the update, before single elements are clipped."""
        return self.norm * self.scale

    def part(self, start: int, stop: int) -> UpdatePart:
        """float32[stop - start] of the update, read from the files where it is sliced."""
        return UpdatePart(self, start, stop)

    def values(self, start: int, stop: int) -> FlatVector:
        """float32[stop - start] of the update."""
        last = min(stop, self.sent.size)
        values = np.empty(stop - start, dtype=np.float32)
        for part, place in self.sent.within(start, last):
            delta = values[part]
            self.local.read_into(place, delta)
            delta -= self.base.read(place, place + delta.size)
            if self.scale != 1.0:
                delta *= np.float32(self.scale)
        if self.extras is not None and stop > last:
            first = max(start, last)
            values[first - start :] = self.extras.read(first - self.sent.size, stop - self.sent.size)
        return values


@dataclass(frozen=True, slots=True)
class ClipReport:
    """What the plan's bounds took from an update, for this site's own people.

    scale: factor that brought the whole delta within the L2 bound, 1.0 where it was. clipped_elements, of `parameters`:
    those outside their clip. lost_norm: L2 norm of what was cut off them, as a fraction of the update's.
    """

    parameters: int
    scale: float
    clipped_elements: int
    lost_norm: float

    @classmethod
    def of(cls, update: Update, clipping: Clipping) -> ClipReport:
        lost = math.sqrt(clipping.lost_squares) / update.sent_norm if clipping.elements else 0.0
        return cls(update.parameters, update.scale, clipping.elements, lost)

    @property
    def is_untouched(self) -> bool:
        """Whether the update was sent as it was trained."""
        return self.scale == 1.0 and not self.clipped_elements

    def to_json(self) -> str:
        return jsonform.encode(self, ClipReport)

    @classmethod
    def from_json(cls, text: str | bytes) -> ClipReport:
        """Raises InvalidArgument."""
        return jsonform.decode(text, cls, what="the journal's clip report")


@dataclass(frozen=True, slots=True)
class UpdatePart:
    """A stretch of an update as `Packer.pack_chunk` takes it."""

    update: Update
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start,)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        return np.dtype(np.float32)

    def __getitem__(self, part: slice, /) -> FlatVector:
        first, last, _ = part.indices(self.stop - self.start)
        return self.update.values(self.start + first, self.start + max(first, last))


def open_update(
    local: Path,
    base: Path,
    layout: AdapterLayout,
    *,
    max_norm: float,
    sent: Stretches | None = None,
    extras: FlatFile | None = None,
) -> Update:
    """Open two model files as an update.

    sent: which elements move in this round; None for all of them.
    Raises ShapeMismatch if one of the files is not in the plan's layout, UpdateNotFinite if the delta or an extra holds
    a NaN or an infinity: then training has diverged, and nothing of it leaves the site. Raises TrainingFailed if an
    element has moved that the round keeps frozen: what was trained is not what would be sent.
    """
    trained, before = FlatFile.open(local, layout), FlatFile.open(base, layout)
    moving = sent if sent is not None else Stretches((Stretch(0, 0, layout.parameters),), (0,))
    for start, stop in _blocks(moving.gaps(layout.parameters)):
        if trained.read(start, stop).tobytes() != before.read(start, stop).tobytes():
            raise TrainingFailed("training has moved a tensor that this round keeps frozen; nothing of it was sent")
    squares = 0.0
    for start, stop in _blocks((part.stored, part.stored + part.size) for part in moving.parts):
        with np.errstate(over="ignore"):  # found below; in float32, because that is what is masked
            squares += square_norm(np.subtract(trained.read(start, stop), before.read(start, stop)))
    if extras is not None:
        for start, stop in _blocks([(0, extras.parameters)]):
            if not np.isfinite(extras.read(start, stop)).all():
                squares = math.nan
    norm = math.sqrt(squares) if squares >= 0 else math.nan
    if not math.isfinite(norm):
        raise UpdateNotFinite("the trained adapter holds a NaN or an infinity; lower the learning rate of the plan")
    return Update(trained, before, moving, extras, norm, 1.0 if norm <= max_norm else max_norm / norm)


def _blocks(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for first, last in ranges:
        for start in range(first, last, _BLOCK):
            yield start, min(start + _BLOCK, last)
