"""From the domains and updates that an operator asks for to those of a plan, with the metric groups that they need.

Pure. The plan's own rules about them lie in `common.plan` and `common.domains`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from common import jsonform
from common.domains import PlanDomain, cells_of, check_domains
from common.errors import AccordError, PlanInvalid
from common.instruction_updates import Updates
from common.instructions import InstructionSet
from common.plan import Beneath, Plan, domain_groups
from coordinator.rounds.model import Adapter, AdapterState, Run
from coordinator.standing import parse_plan

DOMAIN_STANDARD_ERRORS: Final = 2.0


def with_beneath(plan: Plan, domain: str, beneath: Beneath | None) -> Plan:
    """The plan of a domain adapter, which its own domain's loss decides about; the plan itself without a domain."""
    if not domain and beneath is None:
        return plan
    return replace(
        plan, domain=domain, beneath=beneath, gate=replace(plan.gate, standard_errors=DOMAIN_STANDARD_ERRORS)
    )


def beneath_of(adapter: Adapter, run: Run) -> Beneath:
    """What a plan says of the accepted global adapter that is to be beneath. run: the one that has published it.

    Raises PlanInvalid for an adapter that was not accepted, or has one beneath itself.
    """
    plan = parse_plan(run.plan)
    if adapter.state is not AdapterState.ACCEPTED:
        raise PlanInvalid(f"beneath_adapter {adapter.digest[:12]} is {adapter.state.value}; take an accepted one")
    if plan.domain:
        raise PlanInvalid(f"beneath_adapter {adapter.digest[:12]} is a domain adapter itself; take a global one")
    return Beneath(adapter.digest, run.name, plan.adapter, plan.method)


def with_domains(plan: Plan, domains: tuple[PlanDomain, ...], updates: str) -> tuple[Plan, list[str]]:
    """The plan with domains, and with updates where their settings (JSON) are given; and every mistake in them.

    A plan with updates has candidate templates for each of its domains apart, so the instruction set may grow.
    """
    if not domains and not updates:
        return plan, []
    try:
        check_domains(domains)
        wanted = jsonform.decode(updates, Updates, what="updates_json") if updates else None
        used = InstructionSet.from_json(plan.instruction_set)
        if wanted is not None:
            used = used.for_domains(cells_of(domains))
    except AccordError as error:
        return plan, [error.message]
    masking = replace(plan.masking, metric_groups=domain_groups(domains, used, wanted) or plan.masking.metric_groups)
    if wanted is not None:
        # Beside the sizes of the domains that are shared it would tell the size of one that is not.
        masking = replace(masking, metrics=tuple(name for name in masking.metrics if name != "train_records"))
    return replace(plan, masking=masking, domains=domains, updates=wanted, instruction_set=used.to_json()), []
