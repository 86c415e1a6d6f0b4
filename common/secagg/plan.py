"""What everyone agrees on before keys are made: the masking part of a run's plan, a key epoch, and the thresholds.

Knows nothing of the rest of the plan (that is `plan_hash`, given from outside) and of who the members are.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from common.errors import MalformedMessage, PlanInvalid
from common.secagg import graph
from common.secagg.encoding import MAX_MEMBERS, MAX_ROUNDS, Kind, Reader, Writer
from common.secagg.hashing import DIGEST_BYTES, digest
from common.secagg.ring import CHUNK_WORDS, LANE_CHOICES, VectorLayout, lane_limit

MEMBERS_FLOOR_LEAST: Final = 3
RUN_ID_BYTES: Final = 32
HEAD_WORDS: Final = 2
"""Tail words before the metrics: weight, count."""
MAX_METRICS: Final = 4096
MAX_METRIC_GROUPS: Final = 512
MAX_SLOTS: Final = 65536
"""Over all vectors of a plan."""
MAX_TURNS: Final = 64
MAX_PARAMETERS: Final = 2**32 - 1
UNSET: Final = 2**32 - 1


class RoundKind(IntEnum):
    """What a round's vector carries. EVALUATION has tail words alone."""

    TRAINING = 1
    EVALUATION = 2


@dataclass(frozen=True, slots=True)
class ClipSlot:
    """A run of parameters with one clip C_T: each element is clipped to [-clip, clip] before it is encoded."""

    size: int
    clip: float


@dataclass(frozen=True, slots=True)
class MetricGroup:
    """Tail words that only some members have figures for: summed where enough of them are in the sum, else zeros.

    A member says in its Advertise which groups it contributes to; `RoundContext.open_groups` says what is summed.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The numbers of members that decide, for a roster of `members`.

    shares (t): shares that open a secret, of n in a complete graph and of k + 1 in a sparse one. commits (T): signed
    commits that bind a survivor set. survivors: least size of a survivor set, max(T, n_min, c + 2); in a complete graph
    t is T, in a sparse one the set must also cover the ring (`graph.Graph.check_cover`). contributors: least
    contributors to a metric group that is summed, max(n_min, c + 2). With 2T > n + c, and 2t above the holders of a
    member and those of them who collude, the coordinator and `colluders` members open at most one sum a round.
    """

    members: int
    colluders: int
    shares: int
    commits: int
    survivors: int
    contributors: int


@dataclass(frozen=True, slots=True)
class SecaggPlan:
    """The masking part of a run's plan; immutable, one encoding, one digest.

    plan_hash: 32-byte digest of the run's plan (base model, adapter, method, charter, ...), made outside.
    run_id: 32 bytes, never used for another run.
    members_floor: n_min, least members that are summed, at least 3. members_limit: n_max, which sizes the lanes.
    colluders: c, members assumed to work with the coordinator; None means floor((n - 1) / 3).
    rounds_per_epoch: R. vectors: what rounds carry in their lanes, each a run of parameters in order; more than one
    where rounds take turns at what they send. schedule: the vector of rounds 1, 2, ... over and over, by its place in
    `vectors`. metrics: further tail words, to which every member contributes. metric_groups: tail words after those, to
    which some do.
    Raises PlanInvalid from the constructor.
    """

    plan_hash: bytes
    run_id: bytes
    members_floor: int
    members_limit: int
    rounds_per_epoch: int
    vectors: tuple[tuple[ClipSlot, ...], ...]
    metrics: tuple[str, ...]
    lanes: int
    colluders: int | None = None
    chunk_words: int = CHUNK_WORDS
    metric_groups: tuple[MetricGroup, ...] = ()
    schedule: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        problems = [text for broken, text in self._rules() if broken]
        if problems:
            raise PlanInvalid("; ".join(problems))

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        return (
            (len(self.plan_hash) != DIGEST_BYTES, "plan_hash must be 32 bytes"),
            (len(self.run_id) != RUN_ID_BYTES, "run_id must be 32 bytes"),
            (self.members_floor < MEMBERS_FLOOR_LEAST, f"members_floor must be at least {MEMBERS_FLOOR_LEAST}"),
            (
                not self.members_floor <= self.members_limit <= MAX_MEMBERS,
                f"members_limit must be between members_floor and {MAX_MEMBERS}",
            ),
            (not 1 <= self.rounds_per_epoch <= MAX_ROUNDS, f"rounds_per_epoch must be between 1 and {MAX_ROUNDS}"),
            (self.lanes not in LANE_CHOICES, f"lanes must be one of {LANE_CHOICES}"),
            (
                self.lanes in LANE_CHOICES and lane_limit(self.lanes, max(self.members_limit, 1)) < 1,
                f"{self.lanes} lanes are too narrow for {self.members_limit} members",
            ),
            (self.colluders is not None and self.colluders < 0, "colluders must not be negative"),
            (
                not self.tail_words <= self.chunk_words <= CHUNK_WORDS,
                f"chunk_words must hold the tail words and be at most {CHUNK_WORDS}",
            ),
            (len(set(self.metric_words)) != len(self.metric_words), "metrics must have different names"),
            (
                len({group.name for group in self.metric_groups}) != len(self.metric_groups),
                "metric groups must have different names",
            ),
            (any(not group.name or not group.words for group in self.metric_groups), "a metric group is empty"),
            (
                len(self.metric_words) > MAX_METRICS
                or len(self.metric_groups) > MAX_METRIC_GROUPS
                or sum(len(vector) for vector in self.vectors) > MAX_SLOTS,
                "too many metrics, metric groups or slots",
            ),
            (
                any(slot.size < 1 or not (0 < slot.clip < math.inf) for vector in self.vectors for slot in vector),
                "every slot needs a size of at least 1 and a finite clip above 0",
            ),
            (
                any(sum(slot.size for slot in vector) > MAX_PARAMETERS for vector in self.vectors),
                f"at most {MAX_PARAMETERS} parameters",
            ),
            (
                len(self.schedule) > MAX_TURNS or set(self.schedule) != set(range(len(self.vectors))),
                f"the schedule must name every vector, in at most {MAX_TURNS} turns",
            ),
        )

    def slots_of(self, round_: int) -> tuple[ClipSlot, ...]:
        """The parameters of a training round's vector, in order. Which round it is, the context hash covers."""
        return self.vectors[self.schedule[(round_ - 1) % len(self.schedule)]]

    @property
    def lane_limit(self) -> int:
        """L: a lane value is in [-L, L]."""
        return lane_limit(self.lanes, self.members_limit)

    @property
    def metric_words(self) -> tuple[str, ...]:
        """Names of the tail words after weight and count, in their order: everyone's, then group by group."""
        return (*self.metrics, *(word for group in self.metric_groups for word in group.words))

    def groups_named(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of `names` that are metric groups of the plan, each once and in the plan's order."""
        return tuple(group.name for group in self.metric_groups if group.name in names)

    @property
    def tail_words(self) -> int:
        return HEAD_WORDS + len(self.metric_words)

    def layout(self, kind: RoundKind, round_: int) -> VectorLayout:
        """Chunks and words of a round's vector."""
        return VectorLayout(
            parameters=sum(slot.size for slot in self.slots_of(round_)) if kind is RoundKind.TRAINING else 0,
            lanes=self.lanes,
            tail_words=self.tail_words,
            chunk_words=self.chunk_words,
        )

    def thresholds(self, members: int) -> Thresholds:
        """Thresholds of a roster of `members`. Raises PlanInvalid when the plan can never be met by that many."""
        if not self.members_floor <= members <= self.members_limit:
            raise PlanInvalid(f"{members} members, the plan asks for {self.members_floor} to {self.members_limit}")
        colluders = (members - 1) // 3 if self.colluders is None else self.colluders
        quorum = (members + colluders) // 2 + 1
        sparse = graph.parameters(members, colluders)
        # In both the colluders may be counted: two honest members are what is left, and their sum shows neither.
        contributors = max(self.members_floor, colluders + 2)
        survivors = max(quorum, contributors)
        if survivors > members:
            raise PlanInvalid(
                f"{members} members cannot withstand {colluders} colluders: {survivors} must survive. Have more "
                "members take part; only if fewer of them all may really work with the coordinator, agree on a charter "
                "that names fewer `colluders`"
            )
        return Thresholds(
            members=members,
            colluders=colluders,
            shares=quorum if sparse is None else sparse.threshold,
            commits=quorum,
            survivors=survivors,
            contributors=contributors,
        )

    def encode(self) -> bytes:
        writer = Writer(Kind.PLAN)
        writer.fixed(self.plan_hash, DIGEST_BYTES)
        writer.fixed(self.run_id, RUN_ID_BYTES)
        writer.u32(self.members_floor)
        writer.u32(self.members_limit)
        writer.u32(UNSET if self.colluders is None else self.colluders)
        writer.u32(self.rounds_per_epoch)
        writer.u32(self.lanes)
        writer.u32(self.chunk_words)
        writer.u32(len(self.vectors))
        for vector in self.vectors:
            writer.u32(len(vector))
            for slot in vector:
                writer.u32(slot.size)
                writer.f64(slot.clip)
        writer.u32(len(self.schedule))
        for turn in self.schedule:
            writer.u32(turn)
        writer.texts(self.metrics)
        writer.u32(len(self.metric_groups))
        for group in self.metric_groups:
            writer.text(group.name)
            writer.texts(group.words)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> SecaggPlan:
        """Raises MalformedMessage or PlanInvalid."""
        reader = Reader(data, Kind.PLAN)
        plan_hash, run_id = reader.fixed(DIGEST_BYTES), reader.fixed(RUN_ID_BYTES)
        floor, limit, colluders = reader.u32(), reader.u32(), reader.u32()
        rounds, lanes, chunk_words = reader.u32(), reader.u32(), reader.u32()
        vectors = tuple(
            tuple(ClipSlot(reader.u32(), reader.f64()) for _ in range(reader.u32(MAX_SLOTS)))
            for _ in range(reader.u32(MAX_TURNS))
        )
        schedule = tuple(reader.u32(MAX_TURNS) for _ in range(reader.u32(MAX_TURNS)))
        metrics = reader.texts(MAX_METRICS)
        count = reader.u32(MAX_METRIC_GROUPS)
        groups = tuple(MetricGroup(reader.text(), reader.texts(MAX_METRICS)) for _ in range(count))
        reader.done()
        return cls(
            plan_hash=plan_hash,
            run_id=run_id,
            members_floor=floor,
            members_limit=limit,
            rounds_per_epoch=rounds,
            vectors=vectors,
            metrics=metrics,
            lanes=lanes,
            colluders=None if colluders == UNSET else colluders,
            chunk_words=chunk_words,
            metric_groups=groups,
            schedule=schedule,
        )


@dataclass(frozen=True, slots=True)
class KeyEpoch:
    """One key epoch of a run: keys for rounds first_round .. first_round + R - 1."""

    plan: SecaggPlan
    number: int
    first_round: int

    @property
    def hash(self) -> bytes:
        """What every key, commitment and roster of the epoch is bound to: the whole plan, the epoch, its rounds."""
        return digest("epoch", self.encode())

    @property
    def rounds(self) -> range:
        return range(self.first_round, self.first_round + self.plan.rounds_per_epoch)

    def check_round(self, round_: int) -> None:
        """Raises MalformedMessage unless the epoch has keys for the round."""
        if round_ not in self.rounds:
            raise MalformedMessage(
                f"round {round_} is outside key epoch {self.number} "
                f"(rounds {self.rounds.start} to {self.rounds.stop - 1})"
            )

    def encode(self) -> bytes:
        writer = Writer(Kind.EPOCH)
        writer.blob(self.plan.encode())
        writer.u32(self.number)
        writer.u32(self.first_round)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> KeyEpoch:
        """Raises MalformedMessage or PlanInvalid."""
        reader = Reader(data, Kind.EPOCH)
        plan = SecaggPlan.decode(reader.blob())
        epoch = cls(plan, reader.u32(), reader.u32(2**32 - 1 - MAX_ROUNDS))
        reader.done()
        return epoch
