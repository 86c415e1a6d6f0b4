"""A coordinator that lies and has one member's help: what it says, hears and can compute. Knows no attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.lying_coordinator import World
from common.adapters import FlatVector
from common.errors import AccordError
from common.secagg import (
    Advertisement,
    Masking,
    Ready,
    RoundContext,
    Signed,
    StreamSum,
    TailSums,
    decode_chunk,
)
from common.secagg.encoding import Kind, Writer
from common.secagg.hashing import DIGEST_BYTES

ACCOMPLICE: Final = "alpha"
HONEST: Final = ("bravo", "charlie", "delta")
VICTIM: Final = "echo"
NAMES: Final = (ACCOMPLICE, *HONEST, VICTIM)
STANDARD_DEVIATIONS: Final = 6.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One lie and its answer: the refusal's reason and text, or what the site did."""

    sent: str
    answered: str
    is_refused: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of an attack.

    correlation: of the true update with what is left of the upload, None where nothing was uploaded. control: the same
    without the victim's own masks. noise: six standard deviations of the correlation of unrelated vectors.
    """

    attack: str
    exchanges: tuple[Exchange, ...]
    holds: tuple[str, ...]
    attempt: str
    correlation: float | None
    control: float | None
    noise: float

    @property
    def has_learned(self) -> bool:
        return self.correlation is not None and not abs(self.correlation) <= self.noise


@dataclass(frozen=True, slots=True)
class Played:
    """A round in which everybody has uploaded; and of two members what their journals held before they masked."""

    context: RoundContext
    readies: Mapping[int, Ready]
    accomplice: Masking
    control: Masking

    @property
    def victim(self) -> int:
        return self.context.members.index_of(VICTIM)

    @property
    def accomplice_pair(self) -> dict[int, bytes]:
        """The one pair mask of the victim that the accomplice shares with it: its seed by the accomplice's index."""
        return {self.context.members.index_of(ACCOMPLICE): self.accomplice.pair_seeds[self.victim]}


class Attacker:
    """The coordinator's script in one world: what it has sent, and what it can compute from the answers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.exchanges: list[Exchange] = []

    def say(self, sent: str, call: Callable[[], object], *, done: Callable[[], str]) -> None:
        """Send something and take the answer down. Only the product's own refusals are answers."""
        try:
            call()
        except AccordError as error:
            self.exchanges.append(Exchange(sent, f"{error.reason}: {error.message}", is_refused=True))
            return
        self.exchanges.append(Exchange(sent, done(), is_refused=False))

    def play_to_uploads(self) -> Played:
        """Key set-up, start and uploads without a lie."""
        world = self.world
        roster = world.set_up()
        world.prepare()
        context = world.context(roster)
        accomplice, control = (world.masking_of(name, context.start) for name in (ACCOMPLICE, VICTIM))
        world.upload(context.start)
        return Played(context, world.readies(roster), accomplice, control)

    def left_of_upload(
        self, played: Played, *, self_seeds: Sequence[bytes], pair_seeds: Mapping[int, bytes]
    ) -> FlatVector:
        """The victim's upload without the masks of these seeds, read as one member's update: float32[d]."""
        context, victim = played.context, played.victim
        added = [*self_seeds, *(seed for other, seed in pair_seeds.items() if victim < other)]
        subtracted = [seed for other, seed in pair_seeds.items() if victim > other]
        remover = StreamSum(context.layout, plus=subtracted, minus=added)
        chunks, alone = self.world.upload_of(VICTIM, context), TailSums(count=1, weight=1.0, metrics={})
        for at in range(context.layout.lane_chunks):
            remover.add_into(at, chunks[at])
        plan, round_ = context.epoch.plan, context.start.round
        lane_chunks = range(context.layout.lane_chunks)
        return np.concatenate([decode_chunk(plan, at, chunks[at], alone, round_=round_) for at in lane_chunks])

    def finding(
        self,
        attack: str,
        *,
        holds: Sequence[str],
        attempt: str,
        left: FlatVector | None = None,
        played: Played | None = None,
    ) -> Finding:
        truth = self.world.members[VICTIM].update
        control: FlatVector | None = None
        if played is not None:
            own = played.control
            control = self.left_of_upload(played, self_seeds=[own.self_seed], pair_seeds=own.pair_seeds)
        return Finding(
            attack,
            tuple(self.exchanges),
            tuple(holds),
            attempt,
            None if left is None else correlation(left, truth),
            None if control is None else correlation(control, truth),
            STANDARD_DEVIATIONS / math.sqrt(truth.size),
        )


def correlation(one: FlatVector, other: FlatVector) -> float:
    """Pearson's, over all elements."""
    return float(np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1])


def roster_message(world: World, messages: Sequence[bytes]) -> bytes:
    """A key roster as the coordinator sends it, over any advertisements."""
    named = {Advertisement.decode(Signed.decode(message).body).org_id: message for message in messages}
    writer = Writer(Kind.ROSTER)
    writer.fixed(world.epoch.hash, DIGEST_BYTES)
    writer.blobs(tuple(named[name] for name in sorted(named)))
    return writer.done()
