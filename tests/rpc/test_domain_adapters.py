"""A domain adapter: a run of its own over an accepted global adapter, kept only if it is worth having."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from common.errors import DataInvalid, NotFound, PlanInvalid
from common.manifest import Manifest, read_manifest
from common.methods import Method
from common.plan import Beneath, Plan
from participant.trainer import OnProgress, Preparation, Prepared
from tests.rpc.federation import Federation, delta_of
from tests.rpc.test_domains import DomainTrainer, figures_of

CLINICS = ("site-0", "site-1", "site-2")


class AdaptingTrainer(DomainTrainer):
    """Remembers what it was given to train on, and has no records of another domain than its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.given: list[Preparation] = []

    def check(self, plan: Plan) -> None:
        if plan.domain not in ("", self.domain):
            raise DataInvalid(f"no record of domain {plan.domain}; there are {self.domain}")

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        self.given.append(work)
        return super().prepare(work, on_progress=on_progress, stop=stop)


def add_sites(federation: Federation, *, losses: dict[int, float]) -> None:
    """Three clinics, whose loss in each round is given, and two desks."""
    for number in range(5):
        trainer = AdaptingTrainer(
            delta=delta_of(number),
            records=100,
            loss=lambda round_: losses.get(round_, 1.0),
            domain="clinic" if number < 3 else "desk",
        )
        federation.add_site(f"site-{number}", trainer)


def end(federation: Federation, run: str) -> None:
    federation.turn_until(lambda: federation.state(run) in ("succeeded", "failed"))


def global_adapter(federation: Federation) -> str:
    federation.create_run("global", rounds=1)
    end(federation, "global")
    return str(federation.run("global")["accepted_adapter_digest"])


def create_domain_run(federation: Federation, beneath: str, **settings: object) -> None:
    wanted = {"rounds": 2, "gate_loss_rise": 1.0, "domain": "clinic", "beneath_adapter": beneath, **settings}
    federation.create_run("clinics", **wanted)  # type: ignore[arg-type]


def manifests(federation: Federation, run: str) -> list[Manifest]:
    return [read_manifest(row["manifest_json"].encode()) for row in federation.adapters(run)]


def test_only_sites_of_the_domain_train_on_top_of_the_frozen_adapter_and_the_manifest_names_both(
    federation: Federation,
) -> None:
    add_sites(federation, losses={1: 2.0, 2: 1.5, 3: 1.2})
    beneath = global_adapter(federation)
    create_domain_run(federation, beneath)
    end(federation, "clinics")

    run = federation.run("clinics")
    assert (run["state"], run["reason"]) == ("succeeded", "")
    standing = {member["participant"].removeprefix("participants/"): member for member in run["members"]}
    assert {name for name, member in standing.items() if member["joined"]} == set(CLINICS)
    assert "no record of domain clinic" in standing["site-3"]["message"]
    first = federation.round(1, "clinics")
    assert {name.removeprefix("participants/") for name in first["survivors"]} == set(CLINICS)
    assert figures_of(first)["record_loss/clinic"] == pytest.approx(2.0, abs=1e-4)

    plan = federation.plan("clinics")
    own = federation.plan("global")
    assert plan.beneath == Beneath(beneath, "global", own.adapter, Method(name="fedit"))
    assert plan.gate.standard_errors == 2.0
    for manifest in manifests(federation, "clinics"):
        assert (manifest.domain, manifest.beneath) == ("clinic", beneath)
    trainer = federation.sites["site-0"].trainer
    assert isinstance(trainer, AdaptingTrainer)
    work = next(given for given in trainer.given if given.plan.run == "clinics")
    assert work.beneath is not None
    below = read_manifest((work.beneath / "manifest.json").read_bytes())
    assert (below.digest, below.run) == (beneath, "global")


def test_an_adapter_that_is_no_better_than_none_by_two_standard_errors_is_not_kept(federation: Federation) -> None:
    # 3 clinics of 40 rows with a deviation of 0.2: one error is 0.018, two of a difference are 0.052.
    add_sites(federation, losses={1: 2.0, 2: 1.97, 3: 1.96})
    create_domain_run(federation, global_adapter(federation))
    end(federation, "clinics")
    run = federation.run("clinics")
    assert (run["state"], run["reason"]) == ("failed", "NO_IMPROVEMENT")
    assert "1.9600, without it 2.0000; it must be lower by 0.05" in run["message"]
    by_round = {row["round"]: row["state"] for row in federation.adapters("clinics")}
    assert by_round == {0: "accepted", 1: "set_aside", 2: "set_aside"}
    first = next(row for row in federation.adapters("clinics") if row["round"] == 0)
    assert run["accepted_adapter_digest"] == first["name"].removeprefix("adapters/")


def test_an_adapter_that_is_better_by_more_is_kept_whatever_its_last_candidate_did(federation: Federation) -> None:
    add_sites(federation, losses={1: 2.0, 2: 1.5, 3: 4.1})
    create_domain_run(federation, global_adapter(federation), rounds=2)
    end(federation, "clinics")
    run = federation.run("clinics")
    assert run["state"] == "succeeded"
    by_round = {row["round"]: row["state"] for row in federation.adapters("clinics")}
    assert by_round == {0: "accepted", 1: "accepted", 2: "set_aside"}


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"beneath_adapter": "ab" * 32}, NotFound, "no adapter"),
        ({"beneath_adapter": ""}, PlanInvalid, "needs both its domain and the global adapter"),
        ({"domain": ""}, PlanInvalid, "needs both its domain and the global adapter"),
        ({"domain": "a clinic"}, PlanInvalid, "letters, digits"),
        ({"domains": [{"name": "desk"}]}, PlanInvalid, "measures its own domain"),
    ],
    ids=["an unknown adapter", "none", "no domain", "a name that is none", "another domain measured"],
)
def test_a_domain_run_that_does_not_fit_is_refused_with_the_reason(
    federation: Federation, settings: dict[str, object], error: type[Exception], why: str
) -> None:
    add_sites(federation, losses={})
    beneath = global_adapter(federation)
    with pytest.raises(error, match=why):
        create_domain_run(federation, beneath, **settings)


def test_no_domain_adapter_goes_on_top_of_another(federation: Federation) -> None:
    add_sites(federation, losses={1: 2.0, 2: 1.5, 3: 1.2})
    create_domain_run(federation, global_adapter(federation))
    end(federation, "clinics")
    own = str(federation.run("clinics")["accepted_adapter_digest"])
    with pytest.raises(PlanInvalid, match="is a domain adapter itself"):
        federation.create_run("more", rounds=1, domain="clinic", beneath_adapter=own)
