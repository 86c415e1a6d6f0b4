"""A made-up round for measuring: context, seeds, and masked uploads whose sum opens to a mean that is known.

Keys are not agreed on here: every seed follows from a label, so that processes need nothing from each other. An upload
carries its own self mask and the pair masks with dropped members. Pair masks between survivors cancel in every sum, so
they are left out: the coordinator's work is the same, and making n uploads takes n streams and not n squared.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.adapters import AdapterLayout, FlatVector, TensorSlot
from common.methods.sent import Stretches
from common.plan import METRIC_GROUPS, METRIC_WORDS
from common.secagg import (
    ClipSlot,
    KeyEpoch,
    Masking,
    Members,
    Packer,
    RoundContext,
    RoundKind,
    SecaggPlan,
    Start,
    StreamSum,
    Unmasking,
    choose_lanes,
    fixed_weight,
)
from common.secagg.packing import pack_tail
from common.sent import SentVector

CLIP: Final = 0.01
SPREAD: Final = CLIP / 5
ROUND: Final = 1


def seed_of(*labels: object) -> bytes:
    """32 bytes that follow from the labels."""
    return hashlib.sha256("/".join(map(str, labels)).encode()).digest()


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured. stored: most different uploads on disk; where more survive, each stands for several."""

    parameters: int
    participants: int
    dropouts: int
    stored: int

    @property
    def adapter(self) -> AdapterLayout:
        return AdapterLayout((TensorSlot("delta", (1, self.parameters), 0),))

    @property
    def sent(self) -> SentVector:
        tensors = self.adapter.slots
        return SentVector(tensors, (), tuple(ClipSlot(slot.size, CLIP) for slot in tensors), Stretches.of(tensors))

    @property
    def plan(self) -> SecaggPlan:
        return SecaggPlan(
            plan_hash=seed_of("plan"),
            run_id=seed_of("run"),
            members_floor=3,
            members_limit=self.participants,
            rounds_per_epoch=1,
            vectors=(self.sent.slots,),
            metrics=METRIC_WORDS,
            lanes=choose_lanes(self.participants),
            metric_groups=METRIC_GROUPS,
        )

    def context(self) -> RoundContext:
        """The whole roster is the cohort."""
        everyone = tuple(range(self.participants))
        names = tuple(f"site-{index:04}" for index in everyone)
        keys = tuple(seed_of("signing", index) for index in everyone)
        members = Members(seed_of("roster"), names, keys, tuple(() for _ in everyone))
        epoch = KeyEpoch(self.plan, 0, ROUND)
        start = Start(
            epoch.hash, members.roster_hash, ROUND, RoundKind.TRAINING, everyone, len(members), seed_of("model")
        )
        return RoundContext.of(epoch, members, start)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Spread evenly over the roster."""
        return tuple(at * self.participants // self.dropouts for at in range(self.dropouts))

    @property
    def survivors(self) -> tuple[int, ...]:
        gone = set(self.dropped)
        return tuple(index for index in range(self.participants) if index not in gone)

    @property
    def uploaders(self) -> tuple[int, ...]:
        """Survivors whose uploads are made."""
        return self.survivors[: self.stored]

    def uploader_for(self, survivor_at: int) -> int:
        """Whose upload stands for the survivor at this place."""
        return self.uploaders[survivor_at % len(self.uploaders)]


def weight_of(index: int) -> float:
    """alpha of a member, between a half and one."""
    return fixed_weight(0.5 + (index % 7) / 14) / (1 << 30)


def delta_of(index: int, chunk: int, size: int) -> FlatVector:
    """Part of a member's delta, float32[size]: normal, a fifth of the clip, so that hardly an element is clipped."""
    seed = struct.unpack("<4Q", seed_of("delta", index, chunk))
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32) * np.float32(SPREAD)


def masking_of(context: RoundContext, index: int) -> Masking:
    """A member's keys of the round: the seeds of its self mask and of a pair mask with every neighbour."""
    return Masking(
        context,
        index,
        signing_seed=seed_of("signing", index),
        self_seed=seed_of("self", index),
        pair_seeds={other: seed_of("pair", *sorted((index, other))) for other in context.graph.neighbours(index)},
        shares={},
        group_seeds={},  # nobody has declared a metric group
    )


def left_masks(context: RoundContext, dropped: tuple[int, ...], index: int) -> tuple[list[bytes], list[bytes]]:
    """Seeds that a survivor's upload leaves in the sum, those that it has added and those that it has subtracted."""
    gone = sorted(set(dropped) & set(context.graph.neighbours(index)))
    pairs = [(other, seed_of("pair", *sorted((index, other)))) for other in gone]
    added = [seed_of("self", index), *(seed for other, seed in pairs if index < other)]
    return added, [seed for other, seed in pairs if index > other]


def unmasking_of(case: Case, context: RoundContext) -> Unmasking:
    """What shares would have opened: every mask that is left in the sum over the survivors."""
    added: list[bytes] = []
    subtracted: list[bytes] = []
    for at in range(len(case.survivors)):
        plus, minus = left_masks(context, case.dropped, case.uploader_for(at))
        subtracted += plus
        added += minus
    return Unmasking(context, case.survivors, tuple(added), tuple(subtracted))


def upload_file(folder: Path, index: int) -> Path:
    return folder / f"upload-{index}.masked"


def exact_file(folder: Path) -> Path:
    """The exact mean, float32[d]."""
    return folder / "exact.f32"


def make_uploads(case: Case, folder: Path) -> None:
    """Write the uploads and the exact mean of what went into them."""
    context = case.context()
    plan, layout = context.epoch.plan, context.layout
    times = dict.fromkeys(case.uploaders, 0)
    for at in range(len(case.survivors)):
        times[case.uploader_for(at)] += 1
    makers = {index: _Maker(context, case, index) for index in case.uploaders}
    total_weight = sum(times[index] * weight_of(index) for index in times)
    for index in case.uploaders:
        upload_file(folder, index).unlink(missing_ok=True)
    with exact_file(folder).open("wb") as exact:
        for chunk in range(layout.lane_chunks):
            start, stop = layout.parameters_in(chunk)
            mean: NDArray[np.float64] = np.zeros(stop - start)
            for index, maker in makers.items():
                delta = delta_of(index, chunk, stop - start)
                with upload_file(folder, index).open("ab") as upload:
                    upload.write(maker.chunk(chunk, delta).data)
                mean += np.clip(delta, -CLIP, CLIP) * (times[index] * weight_of(index) / total_weight)
            exact.write(mean.astype(np.float32).data)
    for index, maker in makers.items():
        metrics = dict.fromkeys(plan.metric_words, 0.0)
        tail = pack_tail(plan, fixed_alpha=fixed_weight(weight_of(index)), metrics=metrics, groups=())
        maker.masks.add_into(layout.tail_chunk, tail)
        with upload_file(folder, index).open("ab") as upload:
            upload.write(tail.data)


class _Maker:
    """Makes one member's upload."""

    def __init__(self, context: RoundContext, case: Case, index: int) -> None:
        plus, minus = left_masks(context, case.dropped, index)
        self.masks = StreamSum(context.layout, plus=plus, minus=minus)
        self._packer = Packer(
            context.epoch.plan,
            round_=context.start.round,
            alpha=weight_of(index),
            rounding_key=seed_of("rounding", index),
        )

    def chunk(self, chunk: int, delta: FlatVector) -> NDArray[np.uint64]:
        words, _ = self._packer.pack_chunk(chunk, delta)
        self.masks.add_into(chunk, words)
        return words


def file_chunks(path: Path, context: RoundContext) -> Iterator[bytes]:
    """The chunks of an upload, in order."""
    layout = context.layout
    with path.open("rb") as file:
        for chunk in range(layout.chunks):
            yield file.read(layout.words_in(chunk) * 8)
