"""Attack c: surround the victim with members whose keys the coordinator holds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.attacks.attacker import HONEST, NAMES, VICTIM, Attacker, Finding, roster_message
from benchmarks.lying_coordinator import EPOCH, RUN, Issued, World, issue
from common.assignments import ConfirmShares
from common.secagg import Advertisement, Advertising, SealedShare, Signed, begin_epoch, sealing
from common.secagg.hashing import DIGEST_BYTES, KEY_BYTES
from common.secagg.shamir import SHARE_BYTES


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
            lambda: world.deposit(roster_message(world, [own, *messages]), [VICTIM]),
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
