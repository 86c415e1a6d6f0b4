"""Attack b: have the victim mask, or the others open, a sum over the victim alone."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.attacks.attacker import (
    ACCOMPLICE,
    HONEST,
    NAMES,
    VICTIM,
    Attacker,
    Finding,
    Played,
    roster_message,
)
from benchmarks.lying_coordinator import World
from common.plan import Plan


def alone_with_threshold_one(world: World) -> Finding:
    """Have the victim mask, or the others open, a sum over the victim alone."""
    attacker = Attacker(world)
    _say_low_plan(attacker)
    world.advertise()
    attacker.say(
        f"to {VICTIM}: a key roster that names nobody else",
        lambda: world.deposit(roster_message(world, [world.heard.advertisements[VICTIM]]), [VICTIM]),
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
        left=attacker.left_of_upload(played, self_seeds=(), pair_seeds=played.accomplice_pair),
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
