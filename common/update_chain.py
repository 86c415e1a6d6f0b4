"""From manifest to manifest: the instruction set that a round hands out, as anybody can compute it again.

Each manifest of a run with updates has the sums that its round opened, and what follows from them for the round that
trains from its adapter. So the chain of manifests is a proof that operators' templates and public sums, and nothing
else, made every instruction set; and a run that goes back to an earlier adapter goes back to that adapter's set.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.domains import round_sums
from common.errors import DigestMismatch
from common.instruction_updates import NextRound, next_round
from common.instructions import InstructionSet
from common.manifest import Manifest
from common.plan import Plan


def handed_out(plan: Plan, base: Manifest) -> NextRound:
    """The instruction set, with the state behind it, of a round that trains from an adapter."""
    return base.next_round or NextRound(plan.instruction_set)


def after_round(plan: Plan, before: NextRound, sums: Mapping[str, float], *, sites: int) -> NextRound | None:
    """What follows from a round's summed words; None for a plan without updates.

    sums: of the open groups, words of other kinds among them or not. sites: survivors.
    """
    if plan.updates is None:
        return None
    used = InstructionSet.from_json(before.instruction_set)
    return next_round(
        before,
        round_sums(sums, plan.domains, used, sites=sites),
        settings=plan.updates,
        domains=plan.domains,
        evaluations=plan.template_evaluations,
    )


def domain_words(sums: Mapping[str, float]) -> dict[str, float]:
    """Of a round's summed words those of domains."""
    return {name: value for name, value in sums.items() if "/" in name}


def check_handed_out(plan: Plan, base: Manifest, instruction_set: str) -> None:
    """Raises DigestMismatch unless this is what a round that trains from the adapter hands out."""
    if handed_out(plan, base).instruction_set != instruction_set:
        raise DigestMismatch(
            f"the round hands out another instruction set than the signed manifest of adapter {base.digest[:12]} says"
        )


def check_update(plan: Plan, parent: Manifest, child: Manifest) -> None:
    """Raises DigestMismatch unless the child's instruction set is what follows from its parent's and its own sums."""
    expected = after_round(plan, handed_out(plan, parent), child.domain_sums, sites=child.survivor_count)
    if child.parent != parent.digest or child.next_round != expected:
        raise DigestMismatch(
            f"the instruction set of adapter {child.digest[:12]} does not follow from the sums in its manifest"
        )
