"""Attack a: get both share kinds of the victim, by calling it alive to some and dead to others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.attacks.attacker import ACCOMPLICE, HONEST, NAMES, VICTIM, Attacker, Finding, Played
from benchmarks.lying_coordinator import World
from common.secagg import Reveal, Signed, hashing, sealing, shamir
from common.secagg.graph import pair
from common.secagg.hashing import KEY_BYTES
from common.secagg.shamir import SHARE_BYTES
from participant.journal import RoundPhase


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
    pair_seeds = played.accomplice_pair
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
