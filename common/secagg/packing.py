"""From a float update to packed words and from summed words back to a mean: clip, weigh, round, pack; unpack, decode.

Each element is clipped to its slot's C, multiplied by the weight alpha and by L / C, rounded at random to an integer
q in [-L, L] with mean exactly that value, and stored as q + L in a lane. Sums of lanes never carry. The tail words are
weight (round(alpha * 2**30)), count (1) and metrics (signed, value * 2**20, two's complement; zero in closed groups).
Knows nothing of masks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from common.errors import AggregationFailed, InvalidArgument, ShapeMismatch, UpdateNotFinite
from common.secagg.plan import HEAD_WORDS, ClipSlot, RoundKind, SecaggPlan
from common.secagg.prg import Keystream
from common.secagg.ring import Words, lane_bits

WEIGHT_BITS: Final = 30
METRIC_BITS: Final = 20
FRACTION_BITS_CAP: Final = 16
BLOCK: Final = 32768
"""Elements at a time: small enough that every temporary stays in a core's cache."""
ROUNDING_BYTES: Final = 2
"""Random bits for each element: FRACTION_BITS_CAP of them."""

FlatUpdate = NDArray[np.float32]


class Elements(Protocol):
    """float32[n] that is read piece by piece, such as a file; an array is one too."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[np.float32]: ...

    def __getitem__(self, part: slice, /) -> FlatUpdate: ...


@dataclass(frozen=True, slots=True)
class Clipping:
    """What clipping took: how many elements were outside, and the sum of squares of what was cut off."""

    elements: int = 0
    lost_squares: float = 0.0

    @classmethod
    def of_all(cls, clippings: Iterable[Clipping]) -> Clipping:
        """Of all together, to the same bit in whatever order they come."""
        listed = tuple(clippings)
        return cls(sum(one.elements for one in listed), math.fsum(one.lost_squares for one in listed))


def fraction_bits(limit: int) -> int:
    """F: bits below the integer before rounding. L < 2**(30 - F), so 2 L * 2**F + 2**F - 1 fits an int32."""
    bits: int = min(FRACTION_BITS_CAP, 30 - limit.bit_length())
    return bits


def fixed_weight(alpha: float) -> int:
    """round(alpha * 2**30), at least 1. Raises InvalidArgument unless 0 < alpha <= 1."""
    if not 0.0 < alpha <= 1.0:
        raise InvalidArgument(f"weight {alpha} is outside (0, 1]")
    return max(1, round(alpha * (1 << WEIGHT_BITS)))


class _Clips:
    """The clip of every parameter, as runs of neighbouring parameters with one clip."""

    def __init__(self, slots: Iterable[ClipSlot]) -> None:
        self._stops: list[int] = []
        self._clips: list[float] = []
        stop = 0
        for slot in slots:
            stop += slot.size
            if self._clips and self._clips[-1] == slot.clip:
                self._stops[-1] = stop
            else:
                self._stops.append(stop)
                self._clips.append(slot.clip)

    def within(self, start: int, count: int) -> Iterator[tuple[slice, float]]:
        """Slices of a block of `count` parameters that begins at parameter `start`, each with its clip."""
        run, at = bisect_right(self._stops, start), 0
        while at < count:
            stop = min(self._stops[run] - start, count)
            yield slice(at, stop), self._clips[run]
            run, at = run + 1, stop


class Packer:
    """Packs the update of one training round, chunk by chunk; for one thread at a time.

    rounding_key: 32 fresh private bytes; the same key gives the same words, so never use it for a second update. Each
    lane of each chunk has a stream of its own under it, so that chunks may be packed in any order.
    """

    def __init__(self, plan: SecaggPlan, *, round_: int, alpha: float, rounding_key: bytes) -> None:
        self._plan = plan
        self._layout = plan.layout(RoundKind.TRAINING, round_)
        self._limit = plan.lane_limit
        self._fraction = fraction_bits(self._limit)
        # The weight that is summed is the weight that is applied, to the last bit.
        self._alpha = fixed_weight(alpha) / (1 << WEIGHT_BITS)
        self._cipher = AESGCM(rounding_key)
        self._keystream = Keystream(ROUNDING_BYTES * (self._layout.words_in(0) if self._layout.lane_chunks else 0))
        self._scaled = np.empty(BLOCK, dtype=np.float64)
        self._integers = np.empty(BLOCK, dtype=np.int32)
        self._unused_bits = FRACTION_BITS_CAP - self._fraction
        self._clips = _Clips(plan.slots_of(round_))

    def pack_chunk(self, chunk: int, values: Elements) -> tuple[Words, Clipping]:
        """Words of one lane chunk, and what clipping took from it.

        values: float32[stop - start] of `layout.parameters_in(chunk)`, of which BLOCK elements are asked for at a time.
        Raises ShapeMismatch or UpdateNotFinite.
        """
        start, stop = self._layout.parameters_in(chunk)
        if chunk == self._layout.tail_chunk or values.shape != (stop - start,) or values.dtype != np.float32:
            raise ShapeMismatch(f"chunk {chunk} takes float32[{stop - start}], not {values.dtype}{list(values.shape)}")
        lanes, width, size = self._plan.lanes, self._layout.words_in(chunk), stop - start
        bits = lane_bits(lanes)
        words = np.zeros(width, dtype=np.uint64)
        clippings: list[Clipping] = []
        for lane in range(lanes):
            base = lane * width
            shift = np.uint64(lane * bits)
            stream = self._keystream.bytes(self._cipher, chunk * lanes + lane, ROUNDING_BYTES * width)
            random = stream.view(np.dtype("<u2"))
            for at in range(0, width, BLOCK):
                block = words[at : at + BLOCK]
                first = min(base + at, size)
                last = min(first + block.size, size)
                count = last - first
                packed, clipping = self._quantise(values[first:last], start + first, random[at : at + count])
                clippings.append(clipping)
                packed <<= shift
                block[:count] |= packed
                block[count:] |= np.uint64(self._limit) << shift
        return words, Clipping.of_all(clippings)

    def _quantise(self, values: FlatUpdate, start: int, random: NDArray[np.uint16]) -> tuple[Words, Clipping]:
        """q + L of a block whose first element is parameter `start`, and what was clipped.

        The words are a view that the next call overwrites.
        """
        size = values.size
        scaled, integers = self._scaled[:size], self._integers[:size]
        most = self._alpha * self._limit * (1 << self._fraction)
        parts = tuple(self._clips.within(start, size))
        for part, clip in parts:
            # float64 throughout: in float32 the largest elements would lose the bits that the rounding needs.
            np.multiply(values[part], most / clip, out=scaled[part], dtype=np.float64)
        clipping = _clip(scaled, most, parts)
        # Above zero the cast truncates downwards, so 0.5 makes it round to the nearest. From here on integers: with
        # E[q] = a / 2**F exactly and q never outside [-L, L], while float rounding overflows a lane at the clip's edge.
        scaled += (self._limit << self._fraction) + 0.5
        np.copyto(integers, scaled, casting="unsafe")
        integers += random >> self._unused_bits if self._unused_bits else random
        integers >>= self._fraction
        lanes = scaled.view(np.uint64)
        np.copyto(lanes, integers, casting="unsafe")
        return lanes, clipping


def _clip(scaled: NDArray[np.float64], most: float, parts: Sequence[tuple[slice, float]]) -> Clipping:
    """Clip a block in place to [-most, most]. parts: its slices with the clip of each. Raises UpdateNotFinite."""
    if not scaled.size:
        return Clipping()
    low, high = float(scaled.min()), float(scaled.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UpdateNotFinite("the update holds a NaN or an infinity; nothing was packed")
    if -most <= low and high <= most:
        return Clipping()
    elements, lost = 0, 0.0
    for part, clip in parts:
        block = scaled[part]
        excess = np.abs(block[(block > most) | (block < -most)]) - most
        elements += excess.size
        lost += (clip / most) ** 2 * float(np.einsum("i,i->", excess, excess))
    np.clip(scaled, -most, most, out=scaled)
    return Clipping(elements, lost)


def pack_tail(plan: SecaggPlan, *, fixed_alpha: int, metrics: Mapping[str, float], groups: Collection[str]) -> Words:
    """uint64[tail_words]; all that an evaluation round packs. Called by `Masking.pack_tail`, which knows `groups`.

    fixed_alpha: `fixed_weight` of the member's weight. metrics: a value for every metric word of the plan. groups:
    metric groups whose words are filled; those of all others are zero, whatever `metrics` says.
    Raises InvalidArgument for a name the plan has not, one that is missing, or a value that could overflow the sum of
    members_limit members.
    """
    if set(metrics) != set(plan.metric_words):
        odd = ", ".join(sorted(set(metrics) ^ set(plan.metric_words)))
        raise InvalidArgument(f"the plan's metrics and the given ones differ in: {odd}")
    if not 1 <= fixed_alpha <= (1 << WEIGHT_BITS):
        raise InvalidArgument("the weight word is outside (0, 1]")
    most = (2**63 - 1) // plan.members_limit
    words = [fixed_alpha, 1]
    withheld = {word for group in plan.metric_groups if group.name not in groups for word in group.words}
    for name in plan.metric_words:
        value = 0.0 if name in withheld else metrics[name]
        if not math.isfinite(value) or abs(fixed := round(value * (1 << METRIC_BITS))) > most:
            raise InvalidArgument(f"metric {name} is not a number that fits its word")
        words.append(fixed % 2**64)
    return np.array(words, dtype=np.uint64)


def places_of(plan: SecaggPlan, groups: Collection[str]) -> NDArray[np.intp]:
    """Where in the tail the words of these metric groups are, ascending."""
    wanted = {word for group in plan.metric_groups if group.name in groups for word in group.words}
    return np.array([HEAD_WORDS + at for at, word in enumerate(plan.metric_words) if word in wanted], dtype=np.intp)


@dataclass(frozen=True, slots=True)
class TailSums:
    """What the tail words of the sum say: survivors, total weight A, and the sum of each metric that is shared.

    ignored_groups: closed metric groups whose words are not the zeros that they must be. A member broke the protocol,
    at its own cost; what they say is nobody's to use.
    """

    count: int
    weight: float
    metrics: Mapping[str, float]
    ignored_groups: tuple[str, ...] = ()


def read_tail(
    plan: SecaggPlan, words: Words, *, survivors: int, groups: Collection[str], lost: Collection[str] = ()
) -> TailSums:
    """Decode the unmasked tail chunk. groups: the open ones; of the others' words nothing is decoded. lost: of these
    those whose words are noise, as a contributor is missing.

    Raises AggregationFailed if count or weight cannot be, ShapeMismatch.
    """
    if words.shape != (plan.tail_words,) or words.dtype != np.uint64:
        raise ShapeMismatch(f"the tail is uint64[{plan.tail_words}], not {words.dtype}{list(words.shape)}")
    weight, count = int(words[0]), int(words[1])
    if count != survivors:
        raise AggregationFailed("the count word is not the number of survivors: the sum is not what it should be")
    if not 0 < weight <= survivors << WEIGHT_BITS:
        raise AggregationFailed("the weight word is impossible for this many survivors: a member lied about its weight")
    sums = dict(zip(plan.metric_words, words[HEAD_WORDS:].view(np.int64), strict=True))
    closed = tuple(group for group in plan.metric_groups if group.name not in groups)
    unreadable = (*closed, *(group for group in plan.metric_groups if group.name in lost))
    withheld = {word for group in unreadable for word in group.words}
    return TailSums(
        count=count,
        weight=weight / (1 << WEIGHT_BITS),
        metrics={name: int(total) / (1 << METRIC_BITS) for name, total in sums.items() if name not in withheld},
        ignored_groups=tuple(group.name for group in closed if any(sums[word] for word in group.words)),
    )


def decode_chunk(plan: SecaggPlan, chunk: int, words: Words, tail: TailSums, *, round_: int) -> FlatUpdate:
    """Weighted mean of one lane chunk of a round, float32[parameters of the chunk]: (lane sum - |U3| L) * C / (L A).

    words: unmasked sum. Its error is at most |U3| * C / (L * A), plus float32's own. Raises ShapeMismatch.
    """
    layout = plan.layout(RoundKind.TRAINING, round_)
    layout.check_words(chunk, words)
    start, stop = layout.parameters_in(chunk)
    bits, width = np.uint64(lane_bits(plan.lanes)), words.size
    mask = np.uint64((1 << int(bits)) - 1)
    offset = tail.count * plan.lane_limit
    mean = np.empty(width * plan.lanes, dtype=np.float32)
    for lane in range(plan.lanes):
        for at in range(0, width, BLOCK):
            sums = ((words[at : at + BLOCK] >> (bits * np.uint64(lane))) & mask).view(np.int64) - offset
            mean[lane * width + at : lane * width + at + sums.size] = sums
    mean = mean[: stop - start]
    for part, clip in _Clips(plan.slots_of(round_)).within(start, mean.size):
        np.multiply(mean[part], clip / (plan.lane_limit * tail.weight), out=mean[part])
    return mean
