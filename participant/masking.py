"""This site's part in the masking protocol: key epochs, the masked update, the close of a round.

Every step is journalled before its message leaves, and a message that is sent again is the journalled one, byte for
byte: so a kill at any line costs nothing, and no second vector is ever masked with the same masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from common.assignments import AdvertiseKeys, CloseRound, ConfirmShares, DepositShares, UploadUpdate
from common.charter import Charter
from common.clock import Clock
from common.errors import (
    DataInvalid,
    OutOfTurn,
    ProtocolViolation,
    Unavailable,
    UpdateLost,
    UploadMismatch,
)
from common.log import get_logger
from common.masking import MASKED_KIND, key_epoch, pinned_members
from common.plan import Plan
from common.secagg import (
    Advertising,
    Bound,
    Dealt,
    EpochKeys,
    IdentitySigner,
    Masked,
    Masking,
    RandomBytes,
    Revealed,
    RoundKind,
    Start,
    begin_epoch,
    upload_hash,
)
from common.states import RoundKind as Kind
from participant.client import CoordinatorClient, Evidence
from participant.journal import EpochEntry, EpochPhase, Journal, RoundEntry, RoundPhase, RoundRecord
from participant.privacy.skellam import with_noise
from participant.spool import chunk_sizes, write_masked
from participant.update import ClipReport, Contribution, Update

EVIDENCE_WAIT_SECONDS: Final = 10
# Each further sum on the same model lets an observer compare two cohorts; a rollback needs a second one.
MOST_SUMS_ON_A_MODEL: Final = 3

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signs for this site. certificate_chain: DER, leaf first."""

    participant: str
    certificate_chain: tuple[bytes, ...] = field(repr=False)
    signer: IdentitySigner = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunTerms:
    """What a run's messages are checked against: its plan as pinned, and the charter that the plan was checked with."""

    plan: Plan
    plan_digest: bytes
    charter: Charter


_STATE_OF: Final[Mapping[RoundPhase, type[Masking | Masked | Bound | Revealed]]] = {
    RoundPhase.MASKING: Masking,
    RoundPhase.MASKED: Masked,
    RoundPhase.BOUND: Bound,
    RoundPhase.REVEALED: Revealed,
}

OpenUpdate = Callable[[], Update]
OnMasked = Callable[[ClipReport], None]
OnSent = Callable[[int, int], None]


class MaskingDesk:
    """Does the masking tasks. For one thread.

    spools: a folder for masked updates on their way. metric_groups: names of those that this site has figures for.
    """

    def __init__(
        self,
        *,
        client: Callable[[], CoordinatorClient],
        identity: Callable[[], Identity],
        journal: Journal,
        spools: Path,
        metric_groups: Callable[[], frozenset[str]],
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._client = client
        self._identity = identity
        self._journal = journal
        self._spools = spools
        self._metric_groups = metric_groups
        self._clock = clock
        self._random_bytes = random_bytes

    # --- key epochs -----------------------------------------------------------------------------------------------

    def advertise(self, task: AdvertiseKeys, terms: RunTerms) -> None:
        """Make keys for an epoch, once, and advertise them."""
        entry = self._journal.epoch(task.run, task.epoch)
        if entry is None:
            identity = self._identity()
            epoch = key_epoch(terms.plan, terms.plan_digest, number=task.epoch, first_round=task.first_round)
            groups = self._measured()
            state = begin_epoch(
                epoch,
                org_id=identity.participant,
                certificate_chain=identity.certificate_chain,
                identity_signer=identity.signer,
                metric_groups=groups,
                random_bytes=self._random_bytes,
            )
            entry = EpochEntry(task.run, task.epoch, EpochPhase.ADVERTISING, state.to_bytes())
            self._journal.put_epoch(entry)
            log.info("key_epoch_begun", run=task.run, epoch=task.epoch, metric_groups=sorted(groups))
        if entry.phase is EpochPhase.ADVERTISING:
            message = Advertising.from_bytes(entry.state).message
            self._client().advertise_keys(task.run, task.epoch, message)

    def _measured(self) -> frozenset[str]:
        """What this site declares. Records that cannot be read fail the round, which says so; keys are made anyway."""
        try:
            return self._metric_groups()
        except DataInvalid as error:
            log.warning("metric_groups_unknown", reason=error.reason, message=error.message)
            return frozenset()

    def deposit(self, task: DepositShares, terms: RunTerms) -> None:
        """Check the roster against the charter and deal this site's secrets to it, once."""
        entry = self._own_epoch(task.run, task.epoch)
        if entry.phase is EpochPhase.ADVERTISING:
            roster = self._client().roster(task.run, task.epoch)
            verifier = pinned_members(terms.charter, now=self._clock.now())
            dealt = Advertising.from_bytes(entry.state).deal(roster, verifier)
            entry = replace(entry, phase=EpochPhase.DEALT, state=dealt.to_bytes())
            self._journal.put_epoch(entry)
        if entry.phase is EpochPhase.DEALT:
            self._client().deposit_shares(task.run, task.epoch, Dealt.from_bytes(entry.state).message)

    def confirm(self, task: ConfirmShares) -> None:
        """Open what was sealed to this site, escrow its pair keys, and say what it holds."""
        entry = self._own_epoch(task.run, task.epoch)
        if entry.phase is EpochPhase.ADVERTISING:
            raise OutOfTurn(f"key epoch {task.epoch} went on without this site's shares")
        if entry.phase is EpochPhase.DEALT:
            keys, refusals = Dealt.from_bytes(entry.state).confirm(self._client().shares(task.run, task.epoch))
            for refusal in refusals:
                log.warning("share_refused", run=task.run, epoch=task.epoch, owner=refusal.org_id, why=refusal.why)
            entry = replace(entry, phase=EpochPhase.KEYS, state=keys.to_bytes())
            self._journal.put_epoch(entry)
        keys = EpochKeys.from_bytes(entry.state)
        if keys.message:
            self._client().confirm_shares(task.run, task.epoch, keys.message)
            self._journal.put_epoch(replace(entry, state=keys.without_message().to_bytes()))

    def _own_epoch(self, run: str, epoch: int) -> EpochEntry:
        entry = self._journal.epoch(run, epoch)
        if entry is None:
            raise OutOfTurn(
                f"this site has no keys in key epoch {epoch} of runs/{run}: its journal is new or was reset"
            )
        return entry

    # --- the masked update ----------------------------------------------------------------------------------------

    def upload(
        self,
        task: UploadUpdate,
        terms: RunTerms,
        contribution: Contribution,
        open_update: OpenUpdate,
        on_sent: OnSent,
        on_masked: OnMasked = lambda report: None,
    ) -> None:
        """Mask the prepared update, once, and send it; goes on at the last durable chunk.

        open_update: gives the update of a training round; called only if it is still to be masked. on_masked: told what
        the plan's bounds took from the update.
        """
        entry = self._begin_masking(task, self._own_round(task.run, task.round))
        if entry.phase is RoundPhase.MASKING:
            entry = self._mask(entry, terms, contribution, open_update, on_masked)
        if entry.phase is RoundPhase.MASKED:
            self._send(entry, on_sent)

    def _own_round(self, run: str, round_: int) -> RoundEntry:
        entry = self._journal.round(run, round_)
        if entry is None or entry.phase in (RoundPhase.PREPARING, RoundPhase.FAILED, RoundPhase.OVER):
            raise OutOfTurn(f"this site has nothing prepared for runs/{run}/rounds/{round_}")
        return entry

    def _begin_masking(self, task: UploadUpdate | CloseRound, entry: RoundEntry) -> RoundEntry:
        """Take the round's keys out of the epoch; both states are journalled together."""
        if entry.phase is not RoundPhase.PREPARED:
            return entry
        epoch = self._journal.epoch(task.run, task.epoch)
        if epoch is None:
            # Said, not waited out: the round goes on without this site at once.
            raise UpdateLost(f"this site's keys of key epoch {task.epoch} are gone; it is back with the next key epoch")
        if epoch.phase is not EpochPhase.KEYS:
            raise OutOfTurn(f"this site has not confirmed key epoch {task.epoch}")
        start = Start.decode(task.start)
        if start.round != task.round or start.kind is not MASKED_KIND[Kind(entry.kind)]:
            raise ProtocolViolation("the start message is for another round or another kind of round than was prepared")
        spent_models = (entry.model_hash,) if self._is_spent(entry) else ()
        keys, masking = EpochKeys.from_bytes(epoch.state).start(
            task.start, model_hash=entry.model_hash, spent_models=spent_models
        )
        after = self._changed(entry, phase=RoundPhase.MASKING, state=masking.to_bytes())
        self._journal.put_round(after, keys=replace(epoch, state=keys.to_bytes()))
        return after

    def _mask(
        self,
        entry: RoundEntry,
        terms: RunTerms,
        contribution: Contribution,
        open_update: OpenUpdate,
        on_masked: OnMasked,
    ) -> RoundEntry:
        masking = Masking.from_bytes(entry.state)
        if masking.context.epoch.plan.plan_hash != terms.plan_digest:
            raise ProtocolViolation("the update would be made under another plan than its keys; nothing was masked")
        spool = self.spool(entry.run, entry.round)
        update = open_update() if masking.context.start.kind is RoundKind.TRAINING else None
        alpha = contribution.weight(terms.plan.masking.weight_cap)
        metrics, noise = contribution.metrics, terms.plan.privacy.metrics
        if noise is not None:
            # Those who are certain to be honest among the fewest who can be in a sum: their shares alone are counted.
            needed = masking.context.thresholds
            honest = needed.contributors - needed.colluders
            metrics = with_noise(metrics, noise, honest=honest, random_bytes=self._random_bytes)
        spooled = write_masked(spool, masking, update, alpha=alpha, metrics=metrics, random_bytes=self._random_bytes)
        report = ClipReport.of(update, spooled.clipping) if update is not None else None
        masked = masking.seal(upload_hash(spooled.digests))
        after = self._changed(
            entry,
            phase=RoundPhase.MASKED,
            state=masked.to_bytes(),
            chunk_digests=b"".join(spooled.digests),
            clipping=report.to_json() if report else "",
        )
        self._journal.put_round(after)
        if report is not None:
            on_masked(report)
        return after

    def _send(self, entry: RoundEntry, on_sent: OnSent) -> None:
        """Send the spooled bytes, and only those; a lost spool means that this site is out of the round."""
        masked = Masked.from_bytes(entry.state)
        if masked.upload_hash is None:
            raise OutOfTurn("this site has given its update of this round up")
        spool = self.spool(entry.run, entry.round)
        sizes = chunk_sizes(masked.context.layout)
        if not spool.exists() or spool.stat().st_size != sum(sizes):
            raise UpdateLost(f"the masked update {spool} is lost or damaged; another one is never made for a round")
        state = self._client().upload_state(entry.run, entry.round)
        if not state.is_complete:
            if state.durable_chunks:
                log.info("upload_resumed", run=entry.run, round=entry.round, chunk=state.durable_chunks)
            try:
                self._client().upload(
                    entry.run,
                    entry.round,
                    spool=spool,
                    chunk_sizes=sizes,
                    chunk_digests=entry.chunk_digests,
                    first_chunk=state.durable_chunks,
                    receipt=masked.message,
                )
            except UploadMismatch as error:
                # A connection that broke may still bring chunks after the question above: no reason to be out. Where
                # the bytes themselves are wrong, the next try gets no further than this one.
                if self._client().upload_state(entry.run, entry.round).durable_chunks > state.durable_chunks:
                    raise Unavailable(
                        "more of this upload has become durable meanwhile; going on from there"
                    ) from error
                raise
        self._journal.put_round(self._changed(entry, uploaded_bytes=sum(sizes)))
        on_sent(sum(sizes), state.durable_chunks)

    # --- closing a round ------------------------------------------------------------------------------------------

    def close(self, task: CloseRound) -> bool:
        """Check who survived, bind to that set, and reveal one share for each. False: ask again, commits are missing.

        A site that has missed its own upload still helps to open the others' sum.
        """
        entry = self._begin_masking(task, self._own_round(task.run, task.round))
        if entry.phase is RoundPhase.MASKING:
            given_up = Masking.from_bytes(entry.state).abandon()
            entry = self._changed(entry, phase=RoundPhase.MASKED, state=given_up.to_bytes())
            self._journal.put_round(entry)
        if entry.phase is not RoundPhase.REVEALED:
            # Asked where a sum opens, too: rounds may all have been masked before the first of them was closed.
            if self._is_spent(entry):
                raise ProtocolViolation(
                    f"{MOST_SUMS_ON_A_MODEL} sums were already opened on this model; another could single a member out"
                )
            revealed = self._evidence_to_reveal(entry)
            if revealed is None:
                return False
            entry = self._changed(
                self._journal.round(entry.run, entry.round) or entry,
                phase=RoundPhase.REVEALED,
                state=revealed.to_bytes(),
                has_opened=True,
            )
            self._journal.put_round(entry)
        self._client().reveal_shares(task.run, task.round, Revealed.from_bytes(entry.state).message)
        return True

    def _is_spent(self, entry: RoundEntry) -> bool:
        return self._journal.times_opened(entry.run, entry.model_hash) >= MOST_SUMS_ON_A_MODEL

    def _evidence_to_reveal(self, entry: RoundEntry) -> Revealed | None:
        evidence = self._client().evidence(entry.run, entry.round, for_reveal=False, wait_seconds=0)
        kind: type[Masked] | type[Bound] = Masked if entry.phase is RoundPhase.MASKED else Bound
        state = kind.from_bytes(entry.state)
        if evidence.is_fast:
            if evidence.commits or self._indices(state, evidence) != state.context.cohort:
                # Alive for one half of the answer and dead for the other: Flower's clients open both kinds of share.
                raise ProtocolViolation("the evidence contradicts itself: a fast close is of the whole cohort")
            return state.accept_fast_close(evidence.receipts)
        bound = state.bind(self._indices(state, evidence), evidence.receipts)
        if entry.phase is not RoundPhase.BOUND:
            self._journal.put_round(self._changed(entry, phase=RoundPhase.BOUND, state=bound.to_bytes()))
        self._client().commit_survivors(entry.run, entry.round, bound.message)
        evidence = self._client().evidence(entry.run, entry.round, for_reveal=True, wait_seconds=EVIDENCE_WAIT_SECONDS)
        if self._indices(state, evidence) != bound.survivors:
            bound.bind(self._indices(state, evidence), evidence.receipts)
        return bound.accept(evidence.commits) if evidence.commits else None

    def _indices(self, state: Masked | Bound, evidence: Evidence) -> tuple[int, ...]:
        return state.context.members.indices_of(evidence.survivors)

    # --- forgetting -----------------------------------------------------------------------------------------------

    def forget_round(self, run: str, round_: int, *, result: str) -> None:
        """Erase the round's masks and shares and its spool: later break-ins find nothing of it.

        What an audit of the round needs stays, none of which is secret. result: digest of the adapter that the round
        published, as this site was told, or nothing.
        """
        self.spool(run, round_).unlink(missing_ok=True)
        entry = self._journal.round(run, round_)
        if entry is not None and entry.state:
            context = _STATE_OF[entry.phase].from_bytes(entry.state).context
            self._journal.put_record(RoundRecord(run, round_, context.encode(), entry.chunk_digests, result))
            self._journal.put_round(self._changed(entry, state=b"", chunk_digests=b""))

    def spool(self, run: str, round_: int) -> Path:
        return self._spools / f"{run}-{round_}.masked"

    def _changed(self, entry: RoundEntry, **changes: object) -> RoundEntry:
        now: datetime = self._clock.now()
        return replace(entry, updated_at=now, **changes)  # type: ignore[arg-type]
