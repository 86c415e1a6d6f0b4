"""A simulated federation of up to 1,000 members: what a key epoch and a round with dropouts cost each side.

    python -m benchmarks.scale --participants 1000 --colluding 0.2 --dropping 0.1 --parameters 100000
    python -m benchmarks.scale --parameters 100000 --plot docs/scale.svg     # 10, 30, 100, 300 and 1,000 members

Real certificates and the protocol's own objects in one process and one thread, without store and network. Prints one
JSON line for each size; seconds are CPU seconds, of a member the mean, of the coordinator the total.

Members check the same roster, receipts and commits, each for itself: at 1,000 that is two million signatures. Here
FULL_CHECKS members check all of them, which is what the figures are the mean of; the others take their word. Whatever
is sent to one member alone is made and checked by every one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from numpy.typing import NDArray

from benchmarks.scale_plot import save_plot
from common.errors import AccordError
from common.identifiers import ParticipantIdentity, parse_federation_id, parse_participant_id
from common.secagg import (
    Advertising,
    ClipSlot,
    CloseKind,
    Dealt,
    Deposit,
    EpochKeys,
    KeyEpoch,
    Masked,
    Packer,
    PinnedMember,
    PinnedMembers,
    Ready,
    Revealed,
    Roster,
    RoundContext,
    RoundKind,
    SecaggPlan,
    Signed,
    TailSums,
    Words,
    add_into,
    assemble_roster,
    begin_epoch,
    check_deposit,
    check_ready,
    check_roster,
    choose_close,
    choose_lanes,
    decode_chunk,
    envelopes_for,
    fixed_weight,
    identity_signer,
    make_start,
    open_masks,
    participant_epoch,
    settle_epoch,
    share_commitments,
    upload_hash,
    verify_commit,
    verify_reveal,
)
from common.secagg.roster import graph_of
from coordinator.pki import new_authority

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
MODEL: Final = hashlib.sha256(b"model").digest()
FULL_CHECKS: Final = 4
LEAST_MEMBERS: Final = 3
PLOTTED: Final = (10, 30, 100, 300, 1000)
ROUND: Final = 1
CLIP: Final = 0.01

FloatArray = NDArray[np.float64]
Phase = TypeVar("Phase")


@dataclass(frozen=True, slots=True)
class Size:
    """What is simulated. colluding, dropping: fractions of the members; dropouts are lost before they upload."""

    participants: int
    colluding: float
    dropping: float
    parameters: int
    rounds: int = 1

    @property
    def told(self) -> str:
        """Who is not to be counted on, for a person."""
        members = self.participants
        return f"{int(members * self.colluding)} collude and {int(members * self.dropping)} drop out"

    @property
    def plan(self) -> SecaggPlan:
        """The masking plan of such a federation."""
        return SecaggPlan(
            plan_hash=hashlib.sha256(b"plan").digest(),
            run_id=secrets.token_bytes(32),
            members_floor=LEAST_MEMBERS,
            members_limit=self.participants,
            rounds_per_epoch=self.rounds,
            vectors=((ClipSlot(self.parameters, CLIP),),),
            metrics=("loss",),
            lanes=choose_lanes(self.participants),
            colluders=int(self.participants * self.colluding),
        )


@dataclass(slots=True)
class Costs:
    """CPU seconds and bytes by step. Of members all values, of which the mean is told; of the coordinator sums."""

    member: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    coordinator: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    sent: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    received: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @contextlib.contextmanager
    def of_member(self, step: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.member[step].append(time.process_time() - begun)

    @contextlib.contextmanager
    def of_coordinator(self, step: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.coordinator[step] += time.process_time() - begun

    def figures(self) -> dict[str, Any]:
        """By step: mean seconds and bytes of a member, seconds of the coordinator."""
        steps = dict.fromkeys((*self.member, *self.sent, *self.received))
        return {
            "member": {
                step: {
                    "seconds": round(_mean(self.member[step]), 5),
                    "bytes_sent": round(_mean(self.sent[step])),
                    "bytes_received": round(_mean(self.received[step])),
                }
                for step in steps
            },
            "coordinator": {step: round(seconds, 4) for step, seconds in self.coordinator.items()},
        }


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values) if values else 0.0


class Federation:
    """The members, the coordinator's view of them, and what it all has cost so far."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.costs = Costs()
        self.epoch = KeyEpoch(size.plan, 0, 1)
        self._randomness = random.Random(1)
        self.roster: Roster
        self.deposits: dict[int, Deposit] = {}
        self.readies: dict[int, Ready] = {}
        self.keys: dict[int, EpochKeys] = {}

    # --- key epoch --------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Advertise, roster, shares, Ready. Asserts that everyone can take part."""
        costs, epoch = self.costs, self.epoch
        verifier, advertised = self._advertise()
        with costs.of_coordinator("roster"):
            self.roster = assemble_roster(epoch, [phase.message for phase in advertised.values()], verifier)
        members = self.roster.members
        around = graph_of(epoch, members)
        dealt: dict[int, Dealt] = {}
        for index, name in enumerate(members.org_ids):
            dealt[index] = self._deal(advertised[name], verifier, is_full=index < FULL_CHECKS)
            costs.sent["deal"].append(len(dealt[index].message))
            with costs.of_coordinator("deposits"):
                self.deposits[index] = check_deposit(epoch, members, dealt[index].message, sender=index)
        for index in range(len(members)):
            with costs.of_coordinator("forwarding"):
                mine = envelopes_for(members, (self.deposits[other] for other in around.neighbours(index)), index)
            with costs.of_member("confirm"):
                keys, refusals = dealt.pop(index).confirm(mine)
            assert not refusals
            costs.received["confirm"].append(sum(map(len, mine)))
            costs.sent["confirm"].append(len(keys.message))
            with costs.of_coordinator("readies"):
                self.readies[index] = check_ready(epoch, members, keys.message, sender=index)
            self.keys[index] = keys.without_message()
        with costs.of_coordinator("settle"):
            settled = settle_epoch(epoch, members, self.readies.values())
        assert settled.usable == tuple(range(len(members)))

    def _advertise(self) -> tuple[PinnedMembers, dict[str, Advertising]]:
        federation = parse_federation_id("scale")
        authority = new_authority(federation, now=NOW)
        pem = authority.certificate.public_bytes(Encoding.PEM)
        pinned, advertised = {}, {}
        for number in range(self.size.participants):
            name = parse_participant_id(f"member-{number:04}")
            key = ec.generate_private_key(ec.SECP256R1())
            issued = authority.issue_participant(key.public_key(), name, now=NOW, life=timedelta(days=30))
            pinned[str(name)] = PinnedMember(ParticipantIdentity(federation, name).uri, pem)
            with self.costs.of_member("advertise"):
                advertised[str(name)] = begin_epoch(
                    self.epoch,
                    org_id=name,
                    certificate_chain=[issued.certificate.public_bytes(Encoding.DER)],
                    identity_signer=identity_signer(key),
                    metric_groups=(),
                    random_bytes=secrets.token_bytes,
                )
            self.costs.sent["advertise"].append(len(advertised[str(name)].message))
        return PinnedMembers(pinned, NOW), advertised

    def _deal(self, phase: Advertising, verifier: PinnedMembers, *, is_full: bool) -> Dealt:
        """One member's deal; the check of the roster, which is inside, is counted by itself."""
        if is_full:
            with self.costs.of_member("roster"):
                check_roster(self.epoch, self.roster.message, verifier)
        self.costs.received["roster"].append(len(self.roster.message))
        with (
            patch.object(participant_epoch, "check_roster", lambda *_: self.roster),
            self.costs.of_member("deal"),
        ):
            return phase.deal(self.roster.message, verifier)

    # --- round ------------------------------------------------------------------------------------------------------

    def run_round(self) -> dict[str, Any]:
        """Start to sum with the dropouts. Asserts that the sum is that of the packed updates, to the bit."""
        costs, members = self.costs, self.roster.members
        cohort = range(len(members))
        with costs.of_coordinator("start"):
            context = make_start(
                self.epoch, members, round_number=ROUND, kind=RoundKind.TRAINING, cohort=cohort, model_hash=MODEL
            )
        dropped = set(self._randomness.sample(cohort, int(len(members) * self.size.dropping)))
        layout = context.layout
        plain, total = ([np.zeros(layout.words_in(at), np.uint64) for at in range(layout.chunks)] for _ in range(2))
        mean = np.zeros(self.size.parameters)
        waiting: dict[int, Masked] = {}
        for index in cohort:
            start = context.start.encode()
            costs.received["start"].append(len(start))
            with costs.of_member("start"):
                self.keys[index], masking = self.keys[index].start(start, model_hash=MODEL)
            if index in dropped:
                continue
            update = np.random.default_rng(index).normal(0, CLIP / 4, self.size.parameters).astype(np.float32)
            mean += np.clip(update, -CLIP, CLIP)
            with costs.of_member("pack"):
                chunks = self._pack(context, update)
            for at, words in enumerate(chunks):
                add_into(plain[at], words)
            with costs.of_member("mask"):
                masker = masking.masker()
                for at, words in enumerate(chunks):
                    masker.add_into(at, words)
                waiting[index] = masking.seal(upload_hash([hashlib.sha256(words.data).digest() for words in chunks]))
            costs.sent["mask"].append(sum(words.nbytes for words in chunks) + len(waiting[index].message))
            with costs.of_coordinator("sum"):
                context.check_receipt(waiting[index].message)
                for at, words in enumerate(chunks):
                    add_into(total[at], words)
        survivors, revealed = self._close(context, waiting)
        tail = self._open(context, survivors, revealed, total)
        assert all(np.array_equal(one, other) for one, other in zip(total, plain, strict=True))
        return {"survivors": len(survivors), "max_error_over_clip": self._error(total, tail, mean / len(survivors))}

    def _pack(self, context: RoundContext, update: NDArray[np.float32]) -> list[Words]:
        layout = context.layout
        packer = Packer(self.epoch.plan, round_=ROUND, alpha=1.0, rounding_key=secrets.token_bytes(32))
        chunks = [packer.pack_chunk(at, update[slice(*layout.parameters_in(at))])[0] for at in range(layout.tail_chunk)]
        tail = np.zeros(layout.tail_words, np.uint64)
        tail[:2] = (fixed_weight(1.0), 1)
        return [*chunks, tail]

    def _close(self, context: RoundContext, waiting: dict[int, Masked]) -> tuple[tuple[int, ...], dict[int, Revealed]]:
        costs = self.costs
        kind, survivors = choose_close(context, waiting)
        receipts = [waiting[index].message for index in survivors]
        costs.received["bind"] = [sum(map(len, receipts))]
        if kind is CloseKind.FAST:
            revealed = self._each("reveal", {i: partial(one.accept_fast_close, receipts) for i, one in waiting.items()})
        else:
            bound = self._each("bind", {i: partial(one.bind, survivors, receipts) for i, one in waiting.items()})
            with costs.of_coordinator("commits"):
                for index, one in bound.items():
                    verify_commit(context, survivors, one.message, sender=index)
            commits = [one.message for one in bound.values()]
            costs.sent["bind"] = [len(message) for message in commits]
            evidence = commits[: context.thresholds.commits]
            costs.received["reveal"] = [sum(map(len, evidence))]
            revealed = self._each("reveal", {i: partial(one.accept, evidence) for i, one in bound.items()})
        costs.sent["reveal"] = [len(phase.message) for phase in revealed.values()]
        return survivors, revealed

    def _each(self, step: str, acts: dict[int, Callable[[], Phase]]) -> dict[int, Phase]:
        """A step of every member. The first FULL_CHECKS check every signature in it, and are measured."""
        done = {}
        for index in list(acts)[:FULL_CHECKS]:
            with self.costs.of_member(step):
                done[index] = acts[index]()
        with patch.object(Signed, "check", lambda *_: None):
            return done | {index: acts[index]() for index in list(acts)[FULL_CHECKS:]}

    def _open(
        self, context: RoundContext, survivors: tuple[int, ...], revealed: dict[int, Revealed], total: list[Words]
    ) -> TailSums:
        costs = self.costs
        with costs.of_coordinator("reveals"):
            commitments = share_commitments(
                context, (one for deposit in self.deposits.values() for one in deposit.envelopes)
            )
            checked = [
                verify_reveal(context, survivors, phase.message, sender=index, commitments=commitments)
                for index, phase in revealed.items()
            ]
        with costs.of_coordinator("open"):
            unmasking = open_masks(context, self.roster, survivors, checked, self.readies)
        with costs.of_coordinator("unmask"):
            unmasker = unmasking.unmasker()
            for at, words in enumerate(total):
                unmasker.add_into(at, words)
            return unmasking.check_tail(total[-1])

    def _error(self, total: list[Words], tail: TailSums, mean: FloatArray) -> float:
        """Largest error of one element of the mean, in clips."""
        layout, plan = self.epoch.plan.layout(RoundKind.TRAINING, ROUND), self.epoch.plan
        parts = (
            np.abs(decode_chunk(plan, at, total[at], tail, round_=ROUND) - mean[slice(*layout.parameters_in(at))])
            for at in range(layout.tail_chunk)
        )
        return max(float(part.max()) for part in parts) / CLIP


def measure(size: Size) -> dict[str, Any]:
    """Run one size and say what it cost."""
    federation = Federation(size)
    begun = time.perf_counter()
    federation.set_up()
    told = federation.run_round()
    thresholds = federation.epoch.plan.thresholds(size.participants)
    around = graph_of(federation.epoch, federation.roster.members)
    return {
        "participants": size.participants,
        "colluders": thresholds.colluders,
        "dropped": size.participants - told["survivors"],
        "parameters": size.parameters,
        "rounds_per_epoch": size.rounds,
        "neighbours": len(around.neighbours(0)),
        "shares_threshold": thresholds.shares,
        "commits_threshold": thresholds.commits,
        "cover": None if around.sparse is None else around.sparse.cover,
        **federation.costs.figures(),
        **told,
        "sum_is_exact": True,
        "wall_seconds": round(time.perf_counter() - begun, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--colluding", type=float, default=0.2, help="fraction of the members")
    parser.add_argument("--dropping", type=float, default=0.1, help="fraction of the members")
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--rounds-per-epoch", type=int, default=1)
    parser.add_argument("--plot", type=Path, help=f"run {PLOTTED} members and draw the costs into this SVG file")
    options = parser.parse_args()
    if options.participants < LEAST_MEMBERS or options.parameters < 1 or options.rounds_per_epoch < 1:
        parser.error(f"at least {LEAST_MEMBERS} participants, one parameter and one round")
    if not (0 <= options.colluding < 1 and 0 <= options.dropping < 1):
        parser.error("--colluding and --dropping are fractions of the members, such as 0.1")
    found = []
    for participants in PLOTTED if options.plot else (options.participants,):
        size = Size(participants, options.colluding, options.dropping, options.parameters, options.rounds_per_epoch)
        try:
            found.append(measure(size))
        except AccordError as error:
            parser.error(f"{participants} participants of whom {size.told}: {error.message}")
        print(json.dumps(found[-1]), flush=True)
    if options.plot:
        save_plot(found, options.plot)


if __name__ == "__main__":
    main()
