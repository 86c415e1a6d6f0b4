"""From what operators write about domains to plans: the example, and every mistake with its reason."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from common.domains import PlanDomain, round_sums
from common.errors import PlanInvalid
from common.instruction_updates import Reference, Updates
from common.instructions import InstructionSet, PromptForm, Task, Template, chat_instruction_set
from common.plan import Plan
from coordinator.domain_planning import with_domains
from coordinator.services.admin_client import plan_settings
from coordinator.services.convert import plan_settings as converted
from tests.unit.rounds import made
from tests.unit.test_planning import MODEL

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "domains.toml"
THREE = tuple(PlanDomain(name, tasks=(Task.INSTRUCTION,)) for name in ("a", "b", "c"))


def planned(domains: tuple[PlanDomain, ...], updates: str = "", *, used: InstructionSet | None = None) -> Plan:
    plan = made.plan()
    if used is not None:
        plan = replace(plan, instruction_set=used.to_json())
    found, mistakes = with_domains(plan, domains, updates)
    if mistakes:
        raise PlanInvalid("; ".join(mistakes))
    found.check()
    return found


def two_for_all() -> InstructionSet:
    plain = chat_instruction_set()
    arms = tuple(
        Template(Task.INSTRUCTION, "{instruction}\n{input}", "{instruction}", name=name) for name in ("one", "two")
    )
    others = tuple(template for template in plain.templates if template.task is not Task.INSTRUCTION)
    return InstructionSet(PromptForm.CHAT, (*others, *arms))


def test_the_example_makes_a_plan_with_its_domains_and_updates():
    settings = converted(plan_settings({"base_model_json": MODEL.to_json(), **tomllib.loads(EXAMPLE.read_text())}))
    plan = planned(settings.domains, settings.updates)
    assert [(domain.name, domain.tasks, domain.most_records) for domain in plan.domains] == [
        ("clinic", (Task.NER,), 0),
        ("helpdesk", (Task.CLASSIFICATION,), 2000),
        ("newsroom", (Task.INSTRUCTION,), 0),
    ]
    assert plan.updates == Updates(rows=32, every=2, reference=Reference.LOCAL)
    assert Plan.from_bytes(plan.to_bytes()) == plan


def test_groups_of_domains_take_the_place_of_totals_and_of_the_sites_sizes():
    plan = planned(THREE, "{}")
    names = {group.name for group in plan.masking.metric_groups}
    assert names == {f"{one}/{kind}" for one in "abc" for kind in ("records", "instruction", "instruction/score")}
    assert "train_records" not in plan.masking.metrics
    measured = {group.name for group in planned(THREE).masking.metric_groups}
    assert measured == {name for name in names if not name.endswith("records")}


def test_candidates_for_every_domain_become_each_domains_own_with_words_of_their_own():
    plan = planned(THREE, "{}", used=two_for_all())
    used = InstructionSet.from_json(plan.instruction_set)
    for name in ("a", "b", "c"):
        found = used.candidates(Task.INSTRUCTION, name)
        assert [(template.domain, template.name) for template in found] == [(name, "one"), (name, "two")]
        assert f"{name}/instruction/two/squares" in plan.masking.metric_words
    # Without updates nobody measures them.
    assert not [word for word in planned(THREE, used=two_for_all()).masking.metric_words if "/two/" in word]


def test_sums_are_read_by_place_and_what_is_closed_is_nothing():
    plan = planned(THREE, "{}", used=two_for_all())
    used = InstructionSet.from_json(plan.instruction_set)
    sums = {
        "a/records": 70.0,
        **{f"b/instruction/{what}": value for what, value in (("rows", 4.0), ("loss", 8.0), ("squares", 20.0))},
        **{f"b/instruction/one/{what}": 1.0 for what in ("rows", "loss", "squares")},
        **{f"b/instruction/two/{what}": 2.0 for what in ("rows", "loss", "squares")},
    }
    found = round_sums(sums, plan.domains, used, sites=5)
    assert (found.sites, found.records) == (5, (70.0, None, None))
    first, second, third = found.cells
    assert (first, third) == (None, None)
    assert second is not None
    assert (second.served.rows, second.served.loss, second.reference) == (4.0, 8.0, None)
    assert [arm.loss for arm in second.arms] == [1.0, 2.0]
    # Measured only in part, as in a round in which candidates were not due.
    del sums["b/instruction/two/rows"]
    assert round_sums(sums, plan.domains, used, sites=5).cells[1].arms == ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("domains", "updates", "why"),
    [
        ((), "{}", "updates need domains"),
        ((PlanDomain("a b"),), "", "letters, digits"),
        ((PlanDomain("a/b"),), "", "letters, digits"),
        ((PlanDomain("a"), PlanDomain("a")), "", "two of one name"),
        ((PlanDomain("a", tasks=()),), "", "at least one task"),
        ((PlanDomain("a", reference_loss=7.0),), "", "reference_loss"),
        (THREE, '{"rows": 0}', "rows must be"),
        (THREE, '{"rowz": 5}', "rowz"),
        (THREE, "[]", "updates_json"),
    ],
)
def test_a_mistake_is_refused_with_what_is_wrong(domains: tuple[PlanDomain, ...], updates: str, why: str):
    with pytest.raises(PlanInvalid, match=why):
        planned(domains, updates)


def test_a_plan_whose_groups_are_not_its_domains_is_refused():
    plan = planned(THREE, "{}")
    fewer = replace(plan, masking=replace(plan.masking, metric_groups=plan.masking.metric_groups[1:]))
    with pytest.raises(PlanInvalid, match="not those of the plan's domains"):
        fewer.check()
    sized = replace(plan, masking=replace(plan.masking, metrics=(*plan.masking.metrics, "train_records")))
    with pytest.raises(PlanInvalid, match="tell of a domain that is not shared"):
        sized.check()
