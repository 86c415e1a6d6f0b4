"""Domains and updated instructions through real masked rounds: what is summed, what follows from it, who checks it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from common.assignments import PrepareUpdate
from common.domains import loss_group, records_group, score_group
from common.errors import DigestMismatch
from common.instruction_updates import NextRound
from common.instructions import FULL_WEIGHT, InstructionSet, Task, chat_instruction_set
from common.manifest import Manifest, read_manifest
from common.states import RoundKind
from common.update_chain import check_handed_out, check_update
from participant.client import Assignments
from participant.journal import RoundPhase
from participant.trainer import OnProgress, Preparation, Prepared, contribution_of
from participant.training.result import ArmScores, CellScores, DataReport, DomainCount, JobResult, TrainingFigures
from tests.rpc.federation import Federation, MadeUpTrainer, delta_of

TERSE, POLITE = "Be terse.", "Be polite."
ROWS = 40
SPREAD = 0.2


@dataclass
class DomainTrainer(MadeUpTrainer):
    """Finds a loss for each round on records of one domain, and another for each candidate template.

    alone: the loss that this site says it reaches by itself.
    """

    domain: str = "clinic"
    task: Task = Task.CLASSIFICATION
    alone: float = 0.0
    arms: Mapping[str, float] = field(default_factory=dict)
    used: dict[int, InstructionSet] = field(default_factory=dict)

    def metric_groups(self) -> frozenset[str]:
        domain, task = self.domain, self.task
        return frozenset((loss_group(domain, task), score_group(domain, task), records_group(domain)))

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        super().prepare(work, on_progress=on_progress, stop=stop)
        self.used[work.round] = used = InstructionSet.from_json(work.instruction_set)
        alone = {(self.domain, self.task): self.alone}
        contribution = contribution_of(self._result(work, used), work.plan, used, alone)
        return Prepared(contribution, "{}")

    def _result(self, work: Preparation, used: InstructionSet) -> JobResult:
        loss = self.loss(work.round)
        candidates = [template.name for template in used.candidates(self.task, self.domain)]
        cell = CellScores(
            domain=self.domain,
            task=self.task,
            rows=ROWS,
            loss=ROWS * loss,
            squares=ROWS * (loss**2 + SPREAD**2),
            tokens=2 * ROWS,
            nats=2 * ROWS * (loss + 0.5),
            correct=10,
            classified=ROWS,
            arms=tuple(
                ArmScores(name=name, rows=8, loss=8 * self.arms[name], squares=8 * (self.arms[name] ** 2 + SPREAD**2))
                for name in candidates
                if name in self.arms
            ),
        )
        report = DataReport(path="x", domains=(DomainCount(self.domain, self.records),))
        figures = TrainingFigures(
            steps=1,
            records=8,
            distinct_records=self.records,
            tokens=9,
            answer_tokens=9,
            losses=(1.0,),
            seconds=1.0,
            tokens_per_second=9.0,
            resumed_at_step=0,
        )
        return JobResult(
            job_digest="x",
            scores=(),
            held_out_data=report,
            train_data=report,
            training=figures if work.kind is RoundKind.TRAIN else None,
            adapter_digest=None,
            device="cpu",
            precision="float32",
            cells=(cell,),
        )


def candidates() -> str:
    """Two candidate templates for classification in every domain."""
    plain = chat_instruction_set()
    own = next(template for template in plain.templates if template.task is Task.CLASSIFICATION)
    two = (replace(own, system=TERSE, name="terse"), replace(own, system=POLITE, name="polite"))
    others = tuple(template for template in plain.templates if template.task is not Task.CLASSIFICATION)
    return replace(plain, templates=(*others, *two)).to_json()


def _slowly(round_: int) -> float:
    return 3.0 - 0.01 * round_


def _quickly(round_: int) -> float:
    return 1.5 - 0.1 * round_


def add_sites(federation: Federation, **counts: int) -> None:
    """So many sites of each domain. Clinics learn slowly; the polite template is the better one everywhere."""
    number = 0
    for domain, count in counts.items():
        for _ in range(count):
            slow = domain == "clinic"
            trainer = DomainTrainer(
                delta_of(number),
                records=20 if slow else 400,
                loss=_slowly if slow else _quickly,
                domain=domain,
                arms={"terse": 2.0, "polite": 1.0},
            )
            federation.add_site(f"site-{number}", trainer)
            number += 1


def settings(*domains: str, updates: str = "{}", **others: object) -> dict[str, Any]:
    return {
        "domains": [{"name": name, "tasks": ["classification"]} for name in domains],
        "updates_json": updates,
        "instruction_set_json": candidates(),
        "gate_loss_rise": 1.0,
        **others,
    }


def figures_of(found: Mapping[str, Any]) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in found["metrics"]}


def manifests(federation: Federation) -> dict[int, Manifest]:
    """Of the run's adapters, by round."""
    found = [read_manifest(row["manifest_json"].encode()) for row in federation.adapters()]
    return {manifest.round: manifest for manifest in found}


def trainer(federation: Federation, site: str) -> DomainTrainer:
    found = federation.sites[site].trainer
    assert isinstance(found, DomainTrainer)
    return found


def test_a_round_tells_each_domains_figures_and_hands_what_follows_from_them_to_the_next(
    federation: Federation,
) -> None:
    add_sites(federation, clinic=3, desk=3)
    federation.create_run(rounds=3, **settings("clinic", "desk"))
    first, second, third = (figures_of(federation.play(number)) for number in (1, 2, 3))

    assert first["record_loss/clinic"] == pytest.approx(2.99, abs=1e-4)
    assert first["heldout_loss/clinic"] == pytest.approx(3.49, abs=1e-4)
    assert first["heldout_loss"] == pytest.approx((3.49 + 1.9) / 2, abs=1e-4)
    assert first["record_loss_error/desk"] == pytest.approx(SPREAD / (3 * ROWS) ** 0.5, rel=1e-3)
    assert first["classification_accuracy/desk"] == pytest.approx(0.25)
    assert first["template_loss/clinic/classification/polite"] == pytest.approx(1.0, abs=1e-4)
    assert (first["records/clinic"], first["records/desk"]) == (60.0, 1200.0)
    assert first["macro_loss"] == pytest.approx((2.99 + 1.4) / 2, abs=1e-4)
    assert "train_records" not in first
    assert "share/clinic" not in first
    # 60 of 1260 records are less than the box allows; then regret moves the shares.
    assert second["share/clinic"] == pytest.approx(1 / 8 + 0.5 * 0.05 * 3 / 8, abs=0.2)
    assert third["share/clinic"] > second["share/clinic"] > 60 / 1260
    assert third["share/clinic"] + third["share/desk"] == pytest.approx(1.0)

    used = trainer(federation, "site-0").used
    assert [used[number].version for number in (1, 2, 3)] == [1, 2, 3]
    assert used[2].template_for(Task.CLASSIFICATION, "clinic").name == "terse"
    assert used[3].template_for(Task.CLASSIFICATION, "clinic").name == "polite"
    assert {template.system for template in used[3].templates} == {"", TERSE, POLITE}


@pytest.mark.parametrize(("reference", "gains"), [("local", "desk"), ("given", "clinic")])
def test_the_domain_whose_sites_would_be_better_off_alone_gains_share(
    federation: Federation, reference: str, gains: str
) -> None:
    add_sites(federation, clinic=3, desk=3)
    # The clinics' loss is the higher one, and no site of theirs would do better alone; each desk would.
    for number in range(6):
        trainer(federation, f"site-{number}").alone = 3.0 if number < 3 else 0.2
    federation.create_run(
        rounds=3, **settings("clinic", "desk", updates=f'{{"reference":"{reference}","start":"equal"}}')
    )
    federation.play(1)
    shares = [figures_of(federation.play(number))[f"share/{gains}"] for number in (2, 3)]

    assert 0.5 < shares[0] < shares[1]


def test_sites_weigh_by_their_domains_shares_once_these_are_known(federation: Federation) -> None:
    add_sites(federation, clinic=3, desk=3)
    federation.create_run(rounds=2, **settings("clinic", "desk"))
    first, second = (figures_of(federation.play(number)) for number in (1, 2))
    assert first["weight"] == pytest.approx(6.0)
    used = trainer(federation, "site-0").used[2]
    expected = sum(3 * min(1.0, share.share / 3 * 6 / FULL_WEIGHT) for share in used.shares)
    assert second["weight"] == pytest.approx(expected, abs=1e-6)
    # And within a site: a clinic's record is drawn as much more often as the clinics' share is larger than their rows'.
    by_domain = {share.domain: share.share for share in used.shares}
    assert used.weight_of("clinic") / used.weight_of("desk") == pytest.approx(
        (by_domain["clinic"] / 60) / (by_domain["desk"] / 1200)
    )


def test_a_domain_of_one_site_alone_has_no_figure_and_no_share_and_its_records_tell_nothing(
    federation: Federation,
) -> None:
    add_sites(federation, clinic=1, desk=3)
    federation.create_run(rounds=2, **settings("clinic", "desk"))
    found = [federation.play(number) for number in (1, 2)]
    for one in found:
        assert not [name for name in figures_of(one) if "clinic" in name]
        closed = {group["name"] for group in one["closed_metric_groups"]}
        assert closed == {"clinic/classification", "clinic/classification/score", "clinic/records"}
    second = figures_of(found[1])
    assert second["share/desk"] == 1.0
    # Desks: a third of the whole each, of four sites. The clinic: the mean weight, whatever it has.
    assert second["weight"] == pytest.approx(3 * min(1.0, 4 / 3 / FULL_WEIGHT) + 1 / FULL_WEIGHT, abs=1e-6)


def test_anybody_can_follow_the_instruction_sets_from_manifest_to_manifest(federation: Federation) -> None:
    add_sites(federation, clinic=3, desk=3)
    federation.create_run(rounds=3, **settings("clinic", "desk"))
    for number in (1, 2, 3):
        federation.play(number)
    plan, found = federation.plan(), manifests(federation)
    used = trainer(federation, "site-0").used
    for number in (1, 2, 3):
        check_update(plan, found[number - 1], found[number])
        check_handed_out(plan, found[number - 1], used[number].to_json())
        assert found[number].instruction_set_digest == used[number].digest
    assert set(found[1].domain_sums) == {
        word for group in plan.masking.metric_groups for word in group.words if "/" in word
    }
    told = found[2].next_round
    assert told is not None
    forged = replace(used[3], shares=tuple(replace(share, share=0.5) for share in used[3].shares))
    with pytest.raises(DigestMismatch, match="does not follow"):
        check_update(plan, found[1], replace(found[2], next_round=NextRound(forged.to_json(), told.state)))
    with pytest.raises(DigestMismatch, match="another instruction set"):
        check_handed_out(plan, found[2], forged.to_json())


def test_a_site_trains_by_no_other_set_than_the_signed_manifest_says(federation: Federation) -> None:
    add_sites(federation, clinic=3, desk=3)
    federation.create_run(rounds=2, **settings("clinic", "desk"))
    federation.play(1)
    victim = federation.sites["site-0"]
    used = trainer(federation, "site-0").used[1]

    def with_the_old_set(answer: Assignments) -> Assignments:
        tasks = tuple(
            replace(task, instruction_set=used.to_json()) if isinstance(task, PrepareUpdate) else task
            for task in answer.tasks
        )
        return replace(answer, tasks=tasks)

    victim.line.doctor("assignments", with_the_old_set)
    found = federation.play(2)
    assert "assignments" in victim.line.calls
    assert victim.phase(2) is not RoundPhase.PREPARED
    assert 2 not in trainer(federation, "site-0").used
    assert (found["state"], "participants/site-0" in found["cohort"]) == ("succeeded", False)
    told = next(row for row in found["participations"] if row["participant"] == "participants/site-0")
    assert "another instruction set" in told["message"]


def test_a_run_that_goes_back_to_an_adapter_goes_back_to_its_instruction_set(federation: Federation) -> None:
    add_sites(federation, clinic=3, desk=3)
    federation.create_run(rounds=5, **settings("clinic", "desk"))
    for number in (1, 2, 3):
        federation.play(number)
    used = trainer(federation, "site-0").used
    assert used[3] != used[2]
    federation.admin.pause_run("runs/run")
    federation.turn_until(lambda: federation.round(federation.run()["round"])["state"] in ("succeeded", "failed"))
    back = manifests(federation)[1]
    federation.admin.roll_back_run("runs/run", adapter_digest=back.digest)
    federation.admin.resume_run("runs/run")
    federation.turn_until(lambda: federation.run()["round"] > max(used))
    number = int(federation.run()["round"])
    federation.play(number)
    assert used[number] == used[2]


def test_a_restarted_coordinator_hands_out_the_same_set(federation: Federation) -> None:
    add_sites(federation, clinic=3, desk=3)
    federation.create_run(rounds=3, **settings("clinic", "desk"))
    federation.play(1)
    federation.restart()
    federation.play(2)
    plan, found = federation.plan(), manifests(federation)
    check_update(plan, found[1], found[2])


def test_domains_without_updates_are_measured_and_change_nothing(federation: Federation) -> None:
    add_sites(federation, clinic=3, desk=3)
    federation.create_run(rounds=2, **settings("clinic", "desk", updates=""))
    first, second = (figures_of(federation.play(number)) for number in (1, 2))
    assert first["record_loss/clinic"] == pytest.approx(2.99, abs=1e-4)
    assert not [name for name in second if name.startswith(("share/", "records/", "template_loss/"))]
    assert first["weight"] == pytest.approx(3 / 16 + 3 * 0.4, abs=1e-6)
    used = trainer(federation, "site-0").used
    assert used[1] == used[2]
    assert all(manifest.next_round is None for manifest in manifests(federation).values())


def test_candidates_are_measured_as_often_as_the_plan_says(federation: Federation) -> None:
    add_sites(federation, clinic=3)
    federation.create_run(rounds=3, **settings("clinic", updates='{"every":2}'))
    plan = federation.plan()
    assert plan.updates is not None
    assert [plan.updates.measures_templates(number) for number in (1, 2, 3)] == [True, False, True]
    assert plan.template_evaluations == 2


def test_a_site_lost_after_masking_costs_its_domain_a_figure_and_nobody_the_round(federation: Federation) -> None:
    add_sites(federation, clinic=4, desk=4)
    federation.create_run(rounds=2, **settings("clinic", "desk"))
    federation.play(1)
    lost = federation.sites["site-0"]
    lost.line.cut(before="upload")
    found = federation.play(2)
    assert found["state"] == "succeeded"
    assert "participants/site-0" in found["cohort"]
    assert "participants/site-0" not in found["survivors"]
    assert not [name for name in figures_of(found) if name.startswith(("record_loss/clinic", "heldout_loss/clinic"))]
    assert figures_of(found)["record_loss/desk"] == pytest.approx(1.3, abs=1e-4)
    closed = {group["name"]: (group["contributors"], group["needed"]) for group in found["closed_metric_groups"]}
    assert closed["clinic/classification"] == (3, 4)
    # What nothing was summed of keeps its share.
    before, after = (manifests(federation)[number].next_round for number in (1, 2))
    assert before is not None
    assert after is not None
    shares = [InstructionSet.from_json(one.instruction_set).shares for one in (before, after)]
    assert shares[0] == shares[1]
