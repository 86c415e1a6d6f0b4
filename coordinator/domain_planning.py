"""From the domains and updates that an operator asks for to those of a plan, with the metric groups that they need.

Pure. The plan's own rules about them lie in `common.plan` and `common.domains`.
"""

from __future__ import annotations

from dataclasses import replace

from common import jsonform
from common.domains import PlanDomain, cells_of, check_domains
from common.errors import AccordError
from common.instruction_updates import Updates
from common.instructions import InstructionSet
from common.plan import Plan, domain_groups


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
