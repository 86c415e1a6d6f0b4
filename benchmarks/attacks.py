"""The three attacks that open Flower's SecAgg+, tried on Accord by a coordinator that lies and has one member's help.

    python -m benchmarks.attacks
    python -m benchmarks.attacks --json
    python -m benchmarks.attacks --flower .tools/flower/bin/python

Five organisations, one of which gives the coordinator all that it has. Each attack says what was sent, what the site
answered and what the attacker holds in the end, and then goes for the victim's update with all of it: every mask that
it can compute is taken off, and what is left is compared with the true update. The control is the same with the
victim's own masks: it shows that the comparison finds an update where there is one. Exit code 1 if an attack learns
something. --flower also runs the attacks on Flower's client functions, in a Python that has `flwr`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.lying_coordinator import EPOCH, RUN, Issued, World, issue
from common import log
from common.adapters import FlatVector
from common.assignments import ConfirmShares
from common.errors import AccordError
from common.plan import Plan
from common.secagg import (
    Advertisement,
    Advertising,
    Masking,
    Ready,
    Reveal,
    RoundContext,
    SealedShare,
    Signed,
    StreamSum,
    TailSums,
    begin_epoch,
    decode_chunk,
    hashing,
    sealing,
    shamir,
)
from common.secagg.encoding import Kind, Writer
from common.secagg.graph import pair
from common.secagg.hashing import DIGEST_BYTES, KEY_BYTES
from common.secagg.shamir import SHARE_BYTES
from participant.journal import RoundPhase

ACCOMPLICE: Final = "alpha"
HONEST: Final = ("bravo", "charlie", "delta")
VICTIM: Final = "echo"
NAMES: Final = (ACCOMPLICE, *HONEST, VICTIM)
STANDARD_DEVIATIONS: Final = 6.0
FLOWER_SCRIPT: Final = Path(__file__).parent / "peers" / "flower_attacks.py"


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
        plan = context.epoch.plan
        return np.concatenate([decode_chunk(plan, at, chunks[at], alone) for at in range(context.layout.lane_chunks)])

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


# --- a: alive and dead at once ------------------------------------------------------------------------------------


def alive_and_dead(world: World) -> Finding:
    """Get both share kinds of the victim: of its self mask as of a survivor, of its escrow as of a dropout.

    No message asks for a kind of share: which one is opened follows from one survivor set. So the set must differ from
    site to site, and the coordinator splits the sites as well as it can.
    """
    attacker = Attacker(world)
    played = attacker.play_to_uploads()
    start, everyone = played.context.start, list(NAMES)
    without = [name for name in NAMES if name != VICTIM]

    def ask(name: str, survivors: Sequence[str], *, is_fast: bool, commits: Sequence[bytes] = ()) -> None:
        world.ask_to_close(name, world.evidence(survivors, is_fast=is_fast, commits=commits), start)

    def did(name: str) -> Callable[[], str]:
        phase = {
            RoundPhase.BOUND: "signed a commit to that set; opened nothing",
            RoundPhase.REVEALED: "opened one share of each owner, as that set says",
        }
        return lambda: phase[world.members[name].phase()]

    attacker.say(
        f"to {HONEST[0]}: one survivor set that names {VICTIM} twice",
        lambda: ask(HONEST[0], [*everyone, VICTIM], is_fast=False),
        done=did(HONEST[0]),
    )
    attacker.say(
        f"to {VICTIM}: all have survived, here are all receipts",
        lambda: ask(VICTIM, everyone, is_fast=True),
        done=did(VICTIM),
    )
    for name in without:
        attacker.say(
            f"to {name}: {VICTIM} has dropped out",
            lambda name=name: ask(name, without, is_fast=False),  # type: ignore[misc]
            done=did(name),
        )
    attacker.say(
        f"to {HONEST[0]}: no, {VICTIM} is alive, here are all receipts",
        lambda: ask(HONEST[0], everyone, is_fast=True),
        done=did(HONEST[0]),
    )
    commits = [world.heard.commits[name] for name in without]
    for name in without:
        attacker.say(
            f"to {name}: {len(commits)} commits to the set without {VICTIM}",
            lambda name=name: ask(name, without, is_fast=False, commits=commits),  # type: ignore[misc]
            done=did(name),
        )
    before = world.heard.reveals[HONEST[0]]
    attacker.say(
        f"to {HONEST[0]}: once more, {VICTIM} is alive, here are all receipts",
        lambda: ask(HONEST[0], everyone, is_fast=True),
        done=lambda: "sent the shares of before again" if world.heard.reveals[HONEST[0]] == before else "opened more",
    )
    return _both_kinds(attacker, played)


def _both_kinds(attacker: Attacker, played: Played) -> Finding:
    """Interpolate what was opened of the victim, take all masks off that follow from it."""
    context, victim = played.context, played.victim
    needed = context.thresholds.shares
    own = played.accomplice.shares[victim]
    accomplice = context.members.index_of(ACCOMPLICE)
    escrow_shares, self_shares = {accomplice: own[:SHARE_BYTES]}, {accomplice: own[SHARE_BYTES:]}
    for name, message in attacker.world.heard.reveals.items():
        if name == ACCOMPLICE:
            continue
        reveal = Reveal.decode(Signed.decode(message).body)
        kind = self_shares if victim in reveal.survivors else escrow_shares
        kind[reveal.index] = reveal.shares[context.cohort.index(victim)].share
    pair_seeds = _accomplice_pair(played)
    if len(escrow_shares) >= needed:
        pair_seeds = _escrowed_seeds(played, _interpolated(escrow_shares, needed))
    # Too few of them: interpolated all the same, as if the threshold were that low.
    guess = _interpolated(self_shares, min(len(self_shares), needed))
    self_seed = hashing.self_mask_seed(guess, context.hash, victim)
    left = attacker.left_of_upload(played, self_seeds=[self_seed], pair_seeds=pair_seeds)
    pairs = len(NAMES) - 1
    return attacker.finding(
        f"{VICTIM} is alive and dead at once",
        holds=[
            f"the masked update of {VICTIM}",
            f"{len(escrow_shares)} of {needed} shares of its escrow key, so {len(pair_seeds)} of {pairs} pair masks",
            f"{len(self_shares)} of {needed} shares of its self mask's key",
            f"what it takes to open the sum of the {pairs} others, the one sum of this round",
        ],
        attempt="all pair masks taken off, and the self mask that the few shares would give",
        left=left,
        played=played,
    )


def _interpolated(shares: Mapping[int, bytes], count: int) -> bytes:
    """What `count` of the shares give as a secret; 32 bytes, whatever the shares are worth."""
    chosen = sorted(shares)[:count]
    weights = shamir.lagrange_at_zero(tuple(holder + 1 for holder in chosen))
    total = sum(weight * int.from_bytes(shares[holder], "big") for weight, holder in zip(weights, chosen, strict=True))
    return (total % shamir.PRIME % 2**256).to_bytes(KEY_BYTES, "big")


def _escrowed_seeds(played: Played, key: bytes) -> dict[int, bytes]:
    """All pair masks of the victim, from its escrow box."""
    context, victim = played.context, played.victim
    ready, round_ = played.readies[victim], context.start.round
    box = ready.escrows[context.round_offset]
    opened = sealing.open_escrow(key, box, roster_hash=context.members.roster_hash, owner=victim, round_=round_)
    return {
        other: hashing.pair_mask_seed(opened[at * KEY_BYTES :][:KEY_BYTES], context.hash, *pair(victim, other))
        for at, other in enumerate(ready.partners)
    }


def _accomplice_pair(played: Played) -> dict[int, bytes]:
    """The one pair mask of the victim that the accomplice shares with it."""
    accomplice = played.context.members.index_of(ACCOMPLICE)
    return {accomplice: played.accomplice.pair_seeds[played.victim]}


# --- b: the victim alone, threshold 1 -----------------------------------------------------------------------------


def alone_with_threshold_one(world: World) -> Finding:
    """Have the victim mask, or the others open, a sum over the victim alone."""
    attacker = Attacker(world)
    _say_low_plan(attacker)
    world.advertise()
    attacker.say(
        f"to {VICTIM}: a key roster that names nobody else",
        lambda: world.deposit(_roster(world, [world.heard.advertisements[VICTIM]]), [VICTIM]),
        done=lambda: "dealt its shares",
    )
    world.heard.advertisements.clear()
    roster = world.set_up()
    world.prepare()
    honest = world.context(roster)
    victim = honest.members.index_of(VICTIM)
    accomplice, control = (world.masking_of(name, honest.start) for name in (ACCOMPLICE, VICTIM))
    for cohort in ((victim,), tuple(sorted((victim, honest.members.index_of(ACCOMPLICE))))):
        named = ", ".join(honest.members.names(cohort))
        attacker.say(
            f"to {VICTIM}: a round whose cohort is {named}",
            lambda cohort=cohort: world.upload(replace(honest.start, cohort=cohort), [VICTIM]),  # type: ignore[misc]
            done=lambda: "masked and sent its update",
        )
    world.upload(honest.start)
    played = Played(honest, world.readies(roster), accomplice, control)
    for name in (VICTIM, *HONEST):
        for is_fast in (True, False):
            attacker.say(
                f"to {name}, all having uploaded: only {VICTIM} has survived ({'fast' if is_fast else 'slow'} close)",
                lambda name=name, is_fast=is_fast: world.ask_to_close(  # type: ignore[misc]
                    name, world.evidence([VICTIM], is_fast=is_fast), honest.start
                ),
                done=lambda: "went along",
            )
    return attacker.finding(
        f"{VICTIM} alone, threshold 1",
        holds=[
            f"the masked update of {VICTIM}",
            f"one of its {len(NAMES) - 1} pair masks, from {ACCOMPLICE}",
            f"1 of {honest.thresholds.shares} shares of its self mask's key, from {ACCOMPLICE}",
        ],
        attempt=f"the pair mask of {ACCOMPLICE} taken off",
        left=attacker.left_of_upload(played, self_seeds=(), pair_seeds=_accomplice_pair(played)),
        played=played,
    )


def _say_low_plan(attacker: Attacker) -> None:
    """t itself has no field: it follows from roster and colluders. What a plan can say is a floor of one."""
    plan = attacker.world.plan
    low = replace(plan, masking=replace(plan.masking, least_cohort=1, colluders=0))
    attacker.say(
        f"to {VICTIM}: a plan with least_cohort 1 and no colluders",
        lambda: Plan.from_bytes(low.to_bytes()),
        done=lambda: "joined",
    )


def _roster(world: World, messages: Sequence[bytes]) -> bytes:
    """A key roster as the coordinator sends it, over any advertisements."""
    named = {Advertisement.decode(Signed.decode(message).body).org_id: message for message in messages}
    writer = Writer(Kind.ROSTER)
    writer.fixed(world.epoch.hash, DIGEST_BYTES)
    writer.blobs(tuple(named[name] for name in sorted(named)))
    return writer.done()


# --- c: invented neighbours ---------------------------------------------------------------------------------------


def invented_neighbours(world: World) -> Finding:
    """Surround the victim with members whose keys the coordinator holds."""
    attacker = Attacker(world)
    world.advertise()
    own = world.heard.advertisements[VICTIM]
    others = [name for name in NAMES if name != VICTIM]
    authority = world.coordinator_authority

    def show(sent: str, messages: Sequence[bytes]) -> None:
        attacker.say(
            f"to {VICTIM}: {sent}",
            lambda: world.deposit(_roster(world, [own, *messages]), [VICTIM]),
            done=lambda: "dealt its shares to them",
        )

    show(
        "a key roster of four organisations that do not exist",
        [_invented(world, issue(authority, f"invented-{at}")).message for at in range(len(others))],
    )
    mine = {name: _invented(world, issue(authority, name)) for name in others}
    show(
        "the members' names with certificates of the coordinator's own CA and keys of its own",
        [mine[name].message for name in others],
    )
    for field in ("kem_key", "signing_key"):
        show(
            f"the members' own advertisements with another {field}",
            [_with_key(world.heard.advertisements[name], mine[name].message, field) for name in others],
        )
    roster = world.honest_roster()
    world.deposit(roster.message)
    _say_forged_shares(attacker, mine)
    return attacker.finding(
        "invented neighbours",
        holds=["no masked update: the victim has masked nothing under keys that it could not trace to the charter"],
        attempt="there is nothing to take masks off",
    )


def _invented(world: World, issued: Issued) -> Advertising:
    identity = issued.identity
    return begin_epoch(
        world.epoch,
        org_id=identity.participant,
        certificate_chain=identity.certificate_chain,
        identity_signer=identity.signer,
        metric_groups=(),
        random_bytes=secrets.token_bytes,
    )


def _with_key(message: bytes, invented: bytes, field: str) -> bytes:
    """A member's signed advertisement in which one key is the coordinator's."""
    signed = Signed.decode(message)
    body, other = Advertisement.decode(signed.body), Advertisement.decode(Signed.decode(invented).body)
    changes: dict[str, Any] = {field: getattr(other, field)}
    return replace(signed, body=replace(body, **changes).encode()).encode()


def _say_forged_shares(attacker: Attacker, mine: Mapping[str, Advertising]) -> None:
    """The true roster, and boxes that the coordinator seals in the members' names with pair seeds of its choice."""
    world = attacker.world
    roster = world.honest_roster()
    victim = roster.members.index_of(VICTIM)
    kem_key = roster.advertisements[victim].kem_key
    envelopes = []
    for name in HONEST:
        owner = roster.members.index_of(name)
        rounds = world.epoch.plan.rounds_per_epoch
        box = sealing.seal_share(
            kem_key,
            secrets.token_bytes(KEY_BYTES) + bytes(2 * SHARE_BYTES * rounds),
            roster_hash=roster.members.roster_hash,
            owner=owner,
            holder=victim,
        )
        forged = SealedShare(roster.members.roster_hash, owner, victim, (bytes(DIGEST_BYTES),) * rounds, box)
        envelopes.append(Signed.by_epoch_key(mine[name].signing_seed, "share", forged.encode()).encode())
    member = world.members[VICTIM]
    member.client.shares_answer = tuple(envelopes)

    def held() -> str:
        opened = world.readies(roster)[victim].opened
        return f"holds shares of {', '.join(roster.members.names(opened))} alone, and says so"

    attacker.say(
        f"to {VICTIM}: boxes sealed in the names of {', '.join(HONEST)} with pair seeds of the coordinator's choice",
        lambda: member.desk.confirm(ConfirmShares(RUN, EPOCH)),
        done=held,
    )
    world.prepare()
    attacker.say(
        f"to {VICTIM}: a round with all of them",
        lambda: world.upload(world.context(roster).start, [VICTIM]),
        done=lambda: "masked and sent its update",
    )


# --- the demonstration --------------------------------------------------------------------------------------------

ATTACKS: Final = (alive_and_dead, alone_with_threshold_one, invented_neighbours)


def demonstrate(folder: Path) -> list[Finding]:
    """Every attack in a federation of its own below `folder`."""
    findings = []
    for at, attack in enumerate(ATTACKS):
        world = World(folder / attack.__name__, NAMES, seed=10 * at)
        try:
            findings.append(attack(world))
        finally:
            world.close()
    return findings


def told(finding: Finding) -> str:
    """The finding as a person reads it."""
    lines = [f"Attack: {finding.attack}"]
    for exchange in finding.exchanges:
        lines += [f"  sent      {exchange.sent}", f"  answered  {exchange.answered}"]
    lines += [f"  holds     {held}" for held in finding.holds]
    lines.append(f"  tried     {finding.attempt}")
    if finding.correlation is not None:
        lines.append(
            f"  found     correlation {finding.correlation:+.4f} with the true update "
            f"(noise: below {finding.noise:.4f}; without the victim's own masks: {finding.control:+.4f})"
        )
    lines.append(f"  learned:  {'PART OF THE UPDATE' if finding.has_learned else 'nothing'}")
    return "\n".join(lines)


def attack_flower(python: Path) -> list[dict[str, Any]]:
    """The same attacks on Flower's client functions. Raises CalledProcessError."""
    ran = subprocess.run([str(python), str(FLOWER_SCRIPT)], check=True, stdout=subprocess.PIPE)
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def told_of_flower(found: Mapping[str, Any]) -> str:
    """One of them as a person reads it."""
    return "\n".join(
        [
            f"Attack on Flower {found['version']}: {found['attack']}",
            *(f"  answered  {answer}" for answer in found["answers"]),
            f"  tried     {found['attempt']}",
            f"  found     correlation {found['correlation']:+.4f} with the true update",
            f"  learned:  {'the update' if found['has_learned'] else 'nothing'}",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON line instead of text")
    parser.add_argument("--flower", type=Path, metavar="PYTHON", help="a Python that has flwr, to compare with")
    options = parser.parse_args()
    # What the sites log of the lies is in their answers.
    log.configure(form=log.LogForm.CONSOLE, level=logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="accord-attacks-") as folder:
        findings = demonstrate(Path(folder))
    flower = [] if options.flower is None else attack_flower(options.flower)
    if options.json:
        accord = [{**asdict(finding), "has_learned": finding.has_learned} for finding in findings]
        print(json.dumps({"accord": accord, "flower": flower}))
    else:
        print("\n\n".join([*map(told, findings), *map(told_of_flower, flower)]))
    return 1 if any(finding.has_learned for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
