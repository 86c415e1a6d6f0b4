"""Audits a finished round from this site's own notes: a part of the sum, and of the adapter that was made from it.

The coordinator is trusted with nothing but to answer. What is checked before the sum is in `common.secagg.audit`; what
is made of the sum here is made by the coordinator's own functions (`common.strategies`, `common.figures`), so the two
agree to the last bit or one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from common.adapters import ADAPTER_FILE, MANIFEST_FILE, FlatFile, FlatVector
from common.errors import AggregationFailed, AuditFailed, NotFound, ProtocolViolation, ShapeMismatch
from common.figures import figures
from common.manifest import read_manifest
from common.plan import Plan
from common.privacy import told_sums
from common.secagg import (
    ChunkAudit,
    OpenedKeys,
    OwnUpload,
    Roster,
    RoundContext,
    RoundKind,
    ShownRound,
    ShownUpload,
    TailSums,
    decode_chunk,
    read_roster,
)
from common.sent import sent_vector
from common.strategies import server_optimizer
from participant.client import RoundExhibits, ShownChunk
from participant.journal import Journal, RoundRecord

DIGEST_BYTES: Final = 32
# Of the mean vector as a whole, so no figure of single chunks.
WHOLE_VECTOR_FIGURES: Final = frozenset(("delta_norm", "product_error"))
_BLOCK: Final = 1 << 18

ChooseChunks = Callable[[int], Sequence[int]]
"""From the number of lane chunks to those that are audited. Called when the round is over, so nobody knows before."""


class Coordinator(Protocol):
    """What an audit asks of it."""

    def roster(self, run: str, epoch: int) -> bytes: ...
    def audit_chunks(
        self, run: str, round_: int, chunks: Sequence[int]
    ) -> tuple[RoundExhibits, Iterator[ShownChunk]]: ...


@dataclass(frozen=True, slots=True)
class RoundNotes:
    """What this site knows by itself of a round that is over. base: digest of the adapter that it trained from."""

    plan: Plan
    record: RoundRecord
    base: str
    participant: str

    @property
    def context(self) -> RoundContext:
        return RoundContext.decode(self.record.context)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was found right. chunks: lane chunks; the tail chunk was audited, too.

    parameters: in the audited chunks, of `all_parameters`. adapter: what was compared, empty after an evaluation round.
    not_recomputed: why the adapter could not be compared with the sum, empty where it was.
    """

    run: str
    round: int
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    is_own_in_sum: bool
    chunks: tuple[int, ...]
    lane_chunks: int
    parameters: int
    all_parameters: int
    weight: float
    metrics: Mapping[str, float]
    base: str
    adapter: str
    not_recomputed: str


def notes_of(journal: Journal, *, run: str, round_: int | None, participant: str) -> RoundNotes:
    """round_: None for the newest that this site can audit. Raises NotFound that says what to do."""
    entry = journal.run(run)
    if entry is None:
        raise NotFound(f"this site knows no run {run}; `accord-participant status` lists those that it knows")
    records = journal.records(run)
    record = next((record for record in records if round_ in (None, record.round)), None)
    if record is None:
        known = ", ".join(str(record.round) for record in reversed(records)) or "none"
        which = f"round {round_}" if round_ is not None else "any round"
        raise NotFound(
            f"this site has no notes of {which} of run {run}. It keeps some of every round in whose masking it took "
            f"part, once it has heard that the round is over; rounds with notes: {known}"
        )
    round_entry = journal.round(run, record.round)
    if round_entry is None:
        raise NotFound(f"this site's journal has lost round {record.round} of run {run}")
    return RoundNotes(Plan.from_bytes(entry.plan), record, round_entry.adapter, participant)


def audit_round(
    notes: RoundNotes, coordinator: Coordinator, *, choose: ChooseChunks, fetch: Callable[[str], Path]
) -> AuditReport:
    """Audit the chunks that `choose` names, and the tail chunk.

    fetch: the PEFT folder of an adapter by its digest, verified. Raises AuditFailed that says what is wrong and whose;
    otherwise what the coordinator answers: OutOfTurn when it has deleted the uploads.
    """
    record, context = notes.record, notes.context
    lanes = tuple(sorted(set(choose(context.layout.lane_chunks))))
    tail_chunk = context.layout.tail_chunk
    shown, chunks = coordinator.audit_chunks(record.run, record.round, (tail_chunk, *lanes))
    audit = _checked(notes, context, _roster(coordinator, record.run, context), shown)
    tail = audit.tail(audit.sum_of(tail_chunk, _of_chunk(audit, chunks, tail_chunk)))
    tail = replace(tail, metrics=told_sums(tail.metrics, notes.plan.privacy.metrics))
    metrics = _check_metrics(shown.metrics, tail, what="the round")
    not_recomputed = ""
    if context.start.kind is RoundKind.TRAINING:
        published = _PublishedStep.open(notes, audit, shown, tail, fetch)
        published.check_frozen()
        not_recomputed = published.not_recomputed
        for chunk in lanes:
            published.check(chunk, audit.sum_of(chunk, _of_chunk(audit, chunks, chunk)))
    elif shown.adapter:
        raise AuditFailed(f"an evaluation round publishes no adapter, and {shown.adapter} is shown")
    names = context.members.names
    return AuditReport(
        run=record.run,
        round=record.round,
        survivors=names(audit.survivors),
        dropped=names(tuple(index for index in context.cohort if index not in audit.survivors)),
        is_own_in_sum=notes.participant in names(audit.survivors),
        chunks=lanes,
        lane_chunks=context.layout.lane_chunks,
        parameters=sum(stop - start for start, stop in map(context.layout.parameters_in, lanes)),
        all_parameters=context.layout.parameters,
        weight=tail.weight,
        metrics=metrics,
        base=notes.base,
        adapter=shown.adapter,
        not_recomputed=not_recomputed,
    )


# --- before the sum -------------------------------------------------------------------------------------------------


def _roster(coordinator: Coordinator, run: str, context: RoundContext) -> Roster:
    try:
        # Not checked again: `ChunkAudit` compares its hash with that of the one which this site has checked.
        return read_roster(context.epoch, coordinator.roster(run, context.epoch.number))
    except ProtocolViolation as error:
        raise AuditFailed(f"the key roster that is shown: {error.message}") from error


def _checked(notes: RoundNotes, context: RoundContext, roster: Roster, shown: RoundExhibits) -> ChunkAudit:
    index_of = {name: index for index, name in enumerate(context.members.org_ids)}
    strangers = sorted({*shown.receipts, *shown.confirmations, *(name for ends in shown.pair_keys for name in ends)})
    unknown = [name for name in strangers if name not in index_of]
    if unknown:
        raise AuditFailed(f"{', '.join(unknown)} is shown as a member, and is not in the key roster of the round")
    own = OwnUpload(index_of[notes.participant], _digests(notes.record.chunk_digests))
    return ChunkAudit.of(
        context,
        roster,
        ShownRound(
            uploads={
                index_of[name]: ShownUpload(receipt, _digests(shown.chunk_digests[name]))
                for name, receipt in shown.receipts.items()
            },
            commits=shown.commits,
            keys=OpenedKeys(
                {index_of[name]: key for name, key in shown.self_keys.items()},
                {(index_of[one], index_of[other]): key for (one, other), key in shown.pair_keys.items()},
            ),
            readies={index_of[name]: body for name, body in shown.confirmations.items()},
        ),
        own=own,
    )


def _digests(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES))


def _of_chunk(audit: ChunkAudit, chunks: Iterator[ShownChunk], chunk: int) -> Iterator[tuple[int, bytes]]:
    """The next chunks of the stream, one for each survivor, by its index."""
    members = audit.context.members
    for _ in audit.survivors:
        part = next(chunks, None)
        if part is None:
            return
        if part.chunk != chunk or part.participant not in members.org_ids:
            raise AuditFailed(f"chunk {part.chunk} of {part.participant} is shown where chunk {chunk} was asked for")
        yield members.index_of(part.participant), part.words


# --- what was made of the sum ---------------------------------------------------------------------------------------


def _check_metrics(published: Mapping[str, float], tail: TailSums, *, what: str) -> dict[str, float]:
    try:
        found = dict(figures(tail))
    except AggregationFailed as error:
        raise AuditFailed(f"the tail chunk's sum is impossible: {error.message}") from error
    said = {name: value for name, value in published.items() if name not in WHOLE_VECTOR_FIGURES}
    wrong = sorted(name for name in {*found, *said} if found.get(name) != said.get(name))
    if wrong:
        told = "; ".join(f"{name} is {_figure(found.get(name))}, {_figure(said.get(name))} was told" for name in wrong)
        raise AuditFailed(f"the figures that are told of {what} are not those of its sum: {told}")
    return found


def _figure(value: float | None) -> str:
    return "nothing" if value is None else f"{value!r}"


@dataclass(frozen=True, slots=True)
class _PublishedStep:
    """The step from the adapter that the round began with to the one that it published, element by element.

    is_first: the run's first adapter is the one before, so a server optimiser's state was its first values.
    """

    notes: RoundNotes
    audit: ChunkAudit
    tail: TailSums
    adapter: str
    before: FlatFile
    after: FlatFile
    is_first: bool

    @classmethod
    def open(
        cls,
        notes: RoundNotes,
        audit: ChunkAudit,
        shown: RoundExhibits,
        tail: TailSums,
        fetch: Callable[[str], Path],
    ) -> _PublishedStep:
        told = notes.record.result
        if not shown.adapter or told not in ("", shown.adapter):
            raise AuditFailed(
                f"adapter {shown.adapter or 'none'} is shown as what the round has published; when it ended this site "
                f"was told {told or 'nothing'}"
            )
        layout = notes.plan.layout()
        base, result = fetch(notes.base), fetch(shown.adapter)
        if shown.adapter != notes.base:  # an update of zeros leaves the adapter that was there, with its manifest
            _check_manifest(notes, audit, tail, result)
        try:
            before, after = (FlatFile.open(folder / ADAPTER_FILE, layout) for folder in (base, result))
        except ShapeMismatch as error:
            raise AuditFailed(f"adapter {shown.adapter}: {error.message}") from error
        is_first = read_manifest((base / MANIFEST_FILE).read_bytes()).round == 0
        return cls(notes, audit, tail, shown.adapter, before, after, is_first)

    @property
    def not_recomputed(self) -> str:
        """Why the step cannot be made again here; empty where it can."""
        name = self.notes.plan.method.server_optimizer
        if self.is_first or not server_optimizer(self.notes.plan.method).initial_state:
            return ""
        return (
            f"the server optimiser {name} moves the adapter by a state of all rounds before, which only the "
            "coordinator keeps: the sum was opened and its figures are right, the step made of it is not checked"
        )

    def check_frozen(self) -> None:
        """Raises AuditFailed unless all that this round does not send is as it was, bit for bit."""
        sent = sent_vector(self.notes.plan, self.audit.context.start.round).stretches
        for first, last in sent.gaps(self.before.parameters):
            for start in range(first, last, _BLOCK):
                stop = min(start + _BLOCK, last)
                if self.before.read(start, stop).tobytes() != self.after.read(start, stop).tobytes():
                    raise AuditFailed(
                        f"adapter {self.adapter} differs from the one before between parameters {start} and {stop}, "
                        "which the round's method keeps frozen"
                    )

    def check(self, chunk: int, words: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        """Raises AuditFailed unless the published parameters are the step's, bit for bit."""
        if self.not_recomputed:
            return
        context, optimizer = self.audit.context, server_optimizer(self.notes.plan.method)
        start, stop = context.layout.parameters_in(chunk)
        sent = sent_vector(self.notes.plan, context.start.round).stretches
        mean = decode_chunk(context.epoch.plan, chunk, words, self.tail, round_=context.start.round)
        for part, place in sent.within(start, min(stop, sent.size)):
            end = place + part.stop - part.start
            state = tuple(np.full(end - place, value, np.float32) for value in optimizer.initial_state.values())
            expected, _ = optimizer.step(self.before.read(place, end), mean[part], state)
            found = self.after.read(place, end)
            if expected.tobytes() != found.tobytes():
                raise AuditFailed(self._difference(chunk, place, expected, found))

    def _difference(self, chunk: int, start: int, expected: FlatVector, found: FlatVector) -> str:
        differing = np.flatnonzero(expected.view(np.uint32) != found.view(np.uint32))
        first = int(differing[0])
        return (
            f"adapter {self.adapter} is not what the members' sum makes of the one before: in chunk {chunk} "
            f"{differing.size} of {found.size} parameters differ, first parameter {start + first}: "
            f"{float(expected[first])!r} by the sum, {float(found[first])!r} in the adapter"
        )


def _check_manifest(notes: RoundNotes, audit: ChunkAudit, tail: TailSums, folder: Path) -> None:
    """What the coordinator has signed of the adapter must be said of this round and its sum."""
    manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
    survivors = audit.context.members.names(audit.survivors)
    said = (manifest.run, manifest.round, manifest.parent, manifest.survivor_count, manifest.survivors or survivors)
    if said != (notes.record.run, notes.record.round, notes.base, len(survivors), survivors):
        raise AuditFailed(
            f"the manifest of adapter {manifest.digest} says round {manifest.round} of run {manifest.run}, made from "
            f"{manifest.parent} by {manifest.survivor_count} sites: not this round's"
        )
    _check_metrics(manifest.metrics, tail, what="the adapter in its manifest")
