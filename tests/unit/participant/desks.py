"""Masking desks of four sites with real journals and spools, and a coordinator in memory that is a few dictionaries.

A site can be killed at any journal write and any call. At every call the journal on disk is asked whether it holds
what is being sent.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np

from common.assignments import AdvertiseKeys, CloseRound, ConfirmShares, DepositShares, UploadUpdate
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter, CharterMember
from common.masking import key_epoch, pinned_members
from common.plan import Masking as MaskingPlan
from common.secagg import (
    Advertising,
    Bound,
    Dealt,
    Deposit,
    EpochKeys,
    Masked,
    Ready,
    Revealed,
    Roster,
    RoundContext,
    RoundKind,
    add_into,
    assemble_roster,
    check_deposit,
    check_ready,
    choose_close,
    decode_chunk,
    envelopes_for,
    identity_signer,
    make_start,
    open_masks,
    settle_epoch,
    share_commitments,
    verify_reveal,
)
from participant.client import CoordinatorClient, Evidence, UploadState
from participant.journal import EpochEntry, EpochPhase, Journal, RoundEntry, RoundPhase
from participant.masking import Identity, MaskingDesk, RunTerms
from participant.update import CLIPPED_ELEMENTS, Contribution, Update, open_update
from tests.fakes import FakeClock
from tests.unit.participant.test_update import adapter
from tests.unit.rounds.made import plan
from tests.unit.secagg.federation import NOW, authority, identity, member_uri, org_name

SITES = 4
RUN, EPOCH, ROUND = "run", 0, 1
PLAN_DIGEST = hashlib.sha256(b"plan").digest()
MODEL_HASH = hashlib.sha256(b"model").digest()
PLAN = plan(
    masking=MaskingPlan(
        least_cohort=3,
        most_participants=SITES,
        rounds_per_epoch=2,
        element_clip=0.5,
        max_update_norm=100.0,
        weight_cap=100,
        lanes=4,
        colluders=1,
    )
)
CHARTER = Charter(
    federation="test",
    members=tuple(
        CharterMember(org_name(i), member_uri(org_name(i)), (authority().pem.decode(),), None) for i in range(SITES)
    ),
    coordinator_public_key="cd" * 32,
    least_cohort=3,
    colluders=None,
    base_model_digests=(),
    bounds=USUAL_BOUNDS,
    form=CHARTER_FORM,
)
TERMS = RunTerms(PLAN, PLAN_DIGEST, CHARTER)
PARAMETERS = PLAN.layout().parameters


def delta_of(site: int) -> np.ndarray:
    return np.random.default_rng(site).uniform(-0.4, 0.4, PARAMETERS).astype(np.float32)


class Killed(Exception):
    """The process ends here."""


class Fate:
    """Counts the moments at which a process may die, and kills it at those that are named."""

    def __init__(self, *deaths: int) -> None:
        self._deaths = set(deaths)
        self.moments: list[str] = []

    def moment(self, name: str) -> None:
        self.moments.append(name)
        if len(self.moments) - 1 in self._deaths:
            raise Killed(name)


class MortalJournal(Journal):
    def __init__(self, path: Path, fate: Fate) -> None:
        super().__init__(path)
        self._fate = fate

    def put_epoch(self, entry: EpochEntry) -> None:
        self._fate.moment(f"before journalling epoch {entry.phase.value}")
        super().put_epoch(entry)
        self._fate.moment(f"after journalling epoch {entry.phase.value}")

    def put_round(self, entry: RoundEntry, *, keys: EpochEntry | None = None) -> None:
        self._fate.moment(f"before journalling round {entry.phase.value}")
        super().put_round(entry, keys=keys)
        self._fate.moment(f"after journalling round {entry.phase.value}")


class Hub:
    """The coordinator's side. `sent` is all that sites have sent, by site and call, as often as they sent it."""

    def __init__(self, uploading: Sequence[int]) -> None:
        self.uploading = tuple(uploading)
        self.epoch = key_epoch(PLAN, PLAN_DIGEST, number=EPOCH, first_round=ROUND)
        self.sent: dict[tuple[int, str], list[bytes]] = defaultdict(list)
        self._roster: Roster | None = None
        self._context: RoundContext | None = None

    def latest(self, call: str) -> dict[int, bytes]:
        return {site: messages[-1] for (site, found), messages in sorted(self.sent.items()) if found == call}

    @property
    def roster(self) -> Roster:
        if self._roster is None:
            verifier = pinned_members(CHARTER, now=NOW)
            self._roster = assemble_roster(self.epoch, self.latest("advertise_keys").values(), verifier)
        return self._roster

    @property
    def deposits(self) -> dict[int, Deposit]:
        members = self.roster.members
        return {
            site: check_deposit(self.epoch, members, message, sender=site)
            for site, message in self.latest("deposit_shares").items()
        }

    @property
    def readies(self) -> dict[int, Ready]:
        members = self.roster.members
        return {
            site: check_ready(self.epoch, members, message, sender=site)
            for site, message in self.latest("confirm_shares").items()
        }

    @property
    def context(self) -> RoundContext:
        if self._context is None:
            usable = settle_epoch(self.epoch, self.roster.members, self.readies.values()).usable
            self._context = make_start(
                self.epoch,
                self.roster.members,
                round_number=ROUND,
                kind=RoundKind.TRAINING,
                cohort=usable,
                model_hash=MODEL_HASH,
            )
        return self._context

    def evidence(self) -> Evidence:
        receipts = self.latest("receipt")
        kind, survivors = choose_close(self.context, receipts)
        commits = tuple(self.latest("commit_survivors").values())
        enough = len(commits) >= self.context.thresholds.commits
        names = self.roster.members.names(survivors)
        return Evidence(names, kind.value == "fast", tuple(receipts.values()), commits if enough else ())

    def mean(self) -> np.ndarray:
        """Open the sum and decode it."""
        context = self.context
        _, survivors = choose_close(context, self.latest("receipt"))
        commitments = share_commitments(
            context, (one for deposit in self.deposits.values() for one in deposit.envelopes)
        )
        reveals = [
            verify_reveal(context, survivors, message, sender=site, commitments=commitments)
            for site, message in self.latest("reveal_shares").items()
        ]
        unmasking = open_masks(context, self.roster, survivors, reveals, self.readies)
        layout = context.layout
        total = [np.zeros(layout.words_in(at), np.uint64) for at in range(layout.chunks)]
        for site in survivors:
            upload = np.frombuffer(self.latest("upload")[site], "<u8").astype(np.uint64)
            for at, words in enumerate(total):
                first = layout.byte_offset(at) // 8
                add_into(words, upload[first : first + words.size])
        for at, words in enumerate(total):
            unmasking.unmasker().add_into(at, words)
        tail = unmasking.check_tail(total[-1])
        return np.concatenate(
            [decode_chunk(self.epoch.plan, at, one, tail, round_=1) for at, one in enumerate(total[:-1])]
        )


class HubClient:
    """A site's client. Before a message counts as sent, the journal on disk must hold it."""

    def __init__(self, hub: Hub, site: int, journal: Path, fate: Fate) -> None:
        self._hub, self._site, self._journal, self._fate = hub, site, journal, fate

    def _send(self, call: str, message: bytes, journalled: Callable[[Journal], bytes]) -> None:
        self._fate.moment(f"before {call}")
        with closing(Journal(self._journal)) as journal:
            assert journalled(journal) == message, f"{call} was sent before it was journalled"
        self._hub.sent[self._site, call].append(message)
        self._fate.moment(f"after {call}")

    def _epoch(self, phase: EpochPhase, state: type[Advertising] | type[Dealt] | type[EpochKeys]) -> Any:
        def message(journal: Journal) -> bytes:
            entry = journal.epoch(RUN, EPOCH)
            assert entry is not None
            assert entry.phase is phase, f"the journal says {entry.phase.value}"
            return state.from_bytes(entry.state).message

        return message

    def _round(self, phase: RoundPhase, state: type[Masked] | type[Bound] | type[Revealed]) -> Any:
        def message(journal: Journal) -> bytes:
            entry = journal.round(RUN, ROUND)
            assert entry is not None
            assert entry.phase is phase, f"the journal says {entry.phase.value}"
            return state.from_bytes(entry.state).message

        return message

    def advertise_keys(self, run: str, epoch: int, advertisement: bytes) -> None:
        self._send("advertise_keys", advertisement, self._epoch(EpochPhase.ADVERTISING, Advertising))

    def roster(self, run: str, epoch: int) -> bytes:
        return self._hub.roster.message

    def deposit_shares(self, run: str, epoch: int, deposit: bytes) -> None:
        self._send("deposit_shares", deposit, self._epoch(EpochPhase.DEALT, Dealt))

    def shares(self, run: str, epoch: int) -> tuple[bytes, ...]:
        return envelopes_for(self._hub.roster.members, self._hub.deposits.values(), self._site)

    def confirm_shares(self, run: str, epoch: int, confirmation: bytes) -> None:
        self._send("confirm_shares", confirmation, self._epoch(EpochPhase.KEYS, EpochKeys))

    def upload_state(self, run: str, round_: int) -> UploadState:
        is_complete = (self._site, "upload") in self._hub.sent
        return UploadState(self._hub.context.layout.chunks if is_complete else 0, is_complete)

    def upload(self, run: str, round_: int, *, spool: Path, receipt: bytes, **sizes: Any) -> None:
        self._send("receipt", receipt, self._round(RoundPhase.MASKED, Masked))
        self._hub.sent[self._site, "upload"].append(spool.read_bytes())
        self._fate.moment("after upload")

    def evidence(self, run: str, round_: int, *, for_reveal: bool, wait_seconds: int) -> Evidence:
        return self._hub.evidence()

    def commit_survivors(self, run: str, round_: int, commit: bytes) -> None:
        self._send("commit_survivors", commit, self._round(RoundPhase.BOUND, Bound))

    def reveal_shares(self, run: str, round_: int, reveal: bytes) -> None:
        self._send("reveal_shares", reveal, self._round(RoundPhase.REVEALED, Revealed))


class Desk:
    """One site: its folder outlives the processes that work on it."""

    def __init__(self, folder: Path, hub: Hub, site: int, fate: Fate) -> None:
        self.hub, self.site, self.fate = hub, site, fate
        self.folder = folder / org_name(site)
        self.folder.mkdir()
        self.base = adapter(self.folder / "base", np.zeros(PARAMETERS, np.float32))
        self.trained = adapter(self.folder / "trained", delta_of(site))
        self.deaths = 0
        with closing(Journal(self.journal_path)) as journal:
            journal.put_round(RoundEntry(RUN, ROUND, "train", RoundPhase.PREPARED, "ab" * 32, MODEL_HASH, NOW, NOW))
        self.open()

    @property
    def journal_path(self) -> Path:
        return self.folder / "journal.sqlite"

    def open(self) -> None:
        """A new process over the same folder."""
        self.journal: Journal = MortalJournal(self.journal_path, self.fate)
        own = identity(org_name(self.site))
        client = HubClient(self.hub, self.site, self.journal_path, self.fate)
        self.desk = MaskingDesk(
            client=lambda: cast(CoordinatorClient, client),
            identity=lambda: Identity(org_name(self.site), own.chain, identity_signer(own.key)),
            journal=self.journal,
            spools=self.folder / "spool",
            metric_groups=frozenset,
            clock=FakeClock(NOW),
            random_bytes=np.random.default_rng().bytes,
        )

    def do(self, step: Callable[[MaskingDesk], bool | None]) -> bool:
        """Take a step, again after every death, until it is done; what it said."""
        while True:
            try:
                return step(self.desk) is not False
            except Killed:
                self.deaths += 1
                self.journal.close()
                self.open()

    def open_update(self) -> Update:
        return open_update(self.trained, self.base, PLAN.layout(), max_norm=PLAN.masking.max_update_norm)

    def contribution(self) -> Contribution:
        words = {name: 1.0 for name in PLAN.masking.metric_words if name != CLIPPED_ELEMENTS}
        return Contribution(20 * (self.site + 1), words)


def play(
    folder: Path, fate: Fate, *, uploading: Sequence[int] = range(SITES), hub: Hub | None = None
) -> tuple[Hub, list[Desk]]:
    """A key epoch and a round. Site 0's processes die as `fate` says; sites not in `uploading` only help to open."""
    hub = hub or Hub(uploading)
    desks = [Desk(folder, hub, site, fate if site == 0 else Fate()) for site in range(SITES)]
    for desk in desks:
        desk.do(lambda one: one.advertise(AdvertiseKeys(RUN, EPOCH, ROUND), TERMS))
    for desk in desks:
        desk.do(lambda one: one.deposit(DepositShares(RUN, EPOCH), TERMS))
    for desk in desks:
        desk.do(lambda one: one.confirm(ConfirmShares(RUN, EPOCH)))
    start = hub.context.start.encode()
    upload = UploadUpdate(RUN, ROUND, EPOCH, start, NOW)
    for desk in (desks[site] for site in uploading):
        desk.do(
            lambda one, desk=desk: one.upload(  # type: ignore[misc]
                upload, TERMS, desk.contribution(), desk.open_update, lambda sent, resumed: None
            )
        )
    closing_ = CloseRound(RUN, ROUND, EPOCH, start)
    waiting = desks
    for _ in range(3):
        waiting = [desk for desk in waiting if not desk.do(lambda one: one.close(closing_))]
    assert not waiting
    return hub, desks
