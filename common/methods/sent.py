"""Which elements of a flat vector are sent: the places of the sent vector's elements among the stored ones.

Pure index arithmetic. Knows nothing of methods and of what the elements mean.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from common.adapters import TensorSlot


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring elements: `size` of them, from element `sent` of the sent vector and `stored` of the stored one."""

    sent: int
    stored: int
    size: int


@dataclass(frozen=True, slots=True)
class Stretches:
    """Sent elements in the order of the stored vector, which they keep; neighbouring tensors are one stretch."""

    parts: tuple[Stretch, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Iterable[TensorSlot]) -> Self:
        """tensors: those that are sent, in the stored vector's order."""
        parts: list[Stretch] = []
        sent = 0
        for tensor in tensors:
            if parts and parts[-1].stored + parts[-1].size == tensor.offset:
                parts[-1] = Stretch(parts[-1].sent, parts[-1].stored, parts[-1].size + tensor.size)
            else:
                parts.append(Stretch(sent, tensor.offset, tensor.size))
            sent += tensor.size
        return cls(tuple(parts), tuple(part.sent for part in parts))

    @property
    def size(self) -> int:
        """Number of sent elements."""
        return self.parts[-1].sent + self.parts[-1].size if self.parts else 0

    def within(self, start: int, stop: int) -> Iterator[tuple[slice, int]]:
        """For sent elements start .. stop - 1: slices of that block, in order, each with the stored place of its first.

        stop: at most `size`.
        """
        at, index = start, bisect_right(self.starts, start) - 1
        while at < stop:
            part = self.parts[index]
            end = min(part.sent + part.size, stop)
            yield slice(at - start, end - start), part.stored + at - part.sent
            at, index = end, index + 1

    def windows(self, first: int, most: int) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
        """What sent elements `first` and following are read by: parts of the stored vector, of `most` elements at most.

        Each is its first stored element, and (offset in it, count) of the sent ones there, in order.
        """
        start, pieces = -1, list[tuple[int, int]]()
        for part, place in self.within(first, self.size):
            at, stop = place, place + part.stop - part.start
            while at < stop:
                if pieces and at >= start + most:
                    yield start, tuple(pieces)
                    pieces.clear()
                if not pieces:
                    start = at
                end = min(stop, start + most)
                pieces.append((at - start, end - at))
                at = end
        if pieces:
            yield start, tuple(pieces)

    def gaps(self, parameters: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the stored elements that are not sent, in order; parameters: of the stored vector."""
        at = 0
        for part in self.parts:
            if part.stored > at:
                yield at, part.stored
            at = part.stored + part.size
        if at < parameters:
            yield at, parameters
