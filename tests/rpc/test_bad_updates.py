"""Sites whose training goes wrong, and sites that lie inside their masked update: nothing bad is published."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from common.adapters import ADAPTER_FILE
from common.errors import BaseModelMismatch, DataInvalid, DigestMismatch, NotFound, PlanInvalid, TrainingFailed
from common.plan import Plan
from common.secagg import Masking, Packer
from participant import workbench
from participant.daemon import REVIEW_AGAIN
from participant.journal import RoundPhase
from participant.trainer import Preparation
from participant.update import open_update
from tests.rpc.federation import MODEL, Federation, MadeUpTrainer, delta_of, federation_in
from tests.rpc.lab import Lab, lab_in, open_round

LIAR = "site-1"
SITES = 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_in(tmp_path_factory, rounds_per_epoch=64, max_update_norm=2.0) as made:
        yield made


@pytest.fixture
def federation(lab: Lab) -> Iterator[Federation]:
    federation = lab.of(SITES)
    if not federation.run()["round"]:
        federation.play(open_round(federation))  # makes the keys of all later rounds
    kept = {name: site.trainer for name, site in federation.sites.items()}
    for index, site in enumerate(federation.sites.values()):
        # Well within the norm: what a case is about is the liar alone.
        site.trainer.delta = delta_of(index, size=0.05)
    yield federation
    for name, site in federation.sites.items():
        site.trainer.spoil, site.trainer.metrics = lambda work: None, {}
        assert site.trainer is kept[name]
    federation.play(int(federation.run()["round"]))


# --- found at the site ------------------------------------------------------------------------------------------


def poison(value: float) -> Callable[[Preparation], None]:
    def spoil(work: Preparation) -> None:
        content = bytearray(work.trained_adapter.read_bytes())
        content[-4:] = np.float32(value).tobytes()
        work.trained_adapter.write_bytes(content)

    return spoil


def cut_short(work: Preparation) -> None:
    work.trained_adapter.write_bytes(work.trained_adapter.read_bytes()[:-4])


def reshape(work: Preparation) -> None:
    content = work.trained_adapter.read_bytes()
    assert b"[4,16]" in content
    work.trained_adapter.write_bytes(content.replace(b"[4,16]", b"[2,32]", 1))


def no_adapter(work: Preparation) -> None:
    (work.trained_adapter.parent / ADAPTER_FILE).write_bytes(b"not safetensors")


def crash(work: Preparation) -> None:
    raise TrainingFailed("the training process was killed (exit code -9)")


def broken(work: Preparation) -> None:
    raise RuntimeError("a bug in the participant")


SPOILED = {
    "NaN": (poison(float("nan")), "UPDATE_NOT_FINITE", "NaN or an infinity"),
    "infinity": (poison(float("-inf")), "UPDATE_NOT_FINITE", "NaN or an infinity"),
    "a file that is too short": (cut_short, "SHAPE_MISMATCH", "."),
    "tensors of another shape": (reshape, "SHAPE_MISMATCH", "."),
    "no adapter file": (no_adapter, "SHAPE_MISMATCH", "."),
    "a crash of the training": (crash, "TRAINING_FAILED", "exit code -9"),
    "a bug": (broken, "UNKNOWN", "RuntimeError in the participant"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_site_whose_training_went_wrong_says_so_and_the_round_goes_on_without_it(
    federation: Federation, what: str
) -> None:
    spoil, reason, text = SPOILED[what]
    federation.sites[LIAR].trainer.spoil = spoil
    number = open_round(federation)

    found = federation.play(number)

    assert found["state"] == "succeeded"
    row = next(entry for entry in found["participations"] if entry["participant"].endswith(LIAR))
    assert (row["state"], row["reason"]) == ("failed", reason)
    assert re.search(text, row["message"])
    others = [name for name in sorted(federation.sites) if name != LIAR]
    errors, bound = federation.errors(number, others)
    assert errors.max() <= bound
    said = [event for event in federation.audit("participant_failed") if event["subject"] == found["name"]]
    assert [event["actor"] for event in said] == [f"participants/{LIAR}"]


def test_an_update_over_the_norm_is_scaled_down_at_the_site(federation: Federation) -> None:
    for name, site in federation.sites.items():
        site.trainer.delta = delta_of(int(name[-1]), size=0.9)
    number = open_round(federation)

    found = federation.play(number)

    assert found["state"] == "succeeded"
    norm = next(metric["value"] for metric in found["metrics"] if metric["name"] == "delta_norm")
    assert 0 < norm <= 2.0


# --- lies inside the masked vector ------------------------------------------------------------------------------


def unclipped(local, base, layout, **settings):
    """The update as it is, whatever its norm."""
    return open_update(local, base, layout, **(settings | {"max_norm": float("inf")}))


def lying_tail(word: int, value: int) -> Callable[..., object]:
    """A tail chunk with one word of the liar's choice: 0 is the weight, 1 the count, 2 the training loss."""

    def tail(*args, **kwargs):
        words = HONEST_TAIL(*args, **kwargs)
        words[word] = value % 2**64
        return words

    return tail


def lying_lanes(packer: Packer, chunk: int, values: object) -> object:
    """Every lane full: values far outside the clip that the plan allows."""
    start, stop = packer._layout.parameters_in(chunk)
    words, over = HONEST_LANES(packer, chunk, np.zeros(stop - start, dtype=np.float32))
    words[:] = np.uint64(2**64 - 1)
    return words, over


HONEST_LANES, HONEST_TAIL = Packer.pack_chunk, Masking.pack_tail
LIES: dict[str, tuple[Any, str, str]] = {
    "an update over the norm": (patch.object(workbench, "open_update", unclipped), "NORM_EXCEEDED", "did not clip"),
    "lanes over the clip": (patch.object(Packer, "pack_chunk", lying_lanes), "NORM_EXCEEDED", "did not clip"),
    "a count of two": (patch.object(Masking, "pack_tail", lying_tail(1, 2)), "AGGREGATION_FAILED", "count word"),
    "a count of none": (patch.object(Masking, "pack_tail", lying_tail(1, 0)), "AGGREGATION_FAILED", "count word"),
    "a weight of five": (patch.object(Masking, "pack_tail", lying_tail(0, 5 << 30)), "AGGREGATION_FAILED", "weight"),
    "a negative weight": (patch.object(Masking, "pack_tail", lying_tail(0, -5 << 30)), "AGGREGATION_FAILED", "weight"),
    "a negative loss": (patch.object(Masking, "pack_tail", lying_tail(2, -(1 << 40))), "AGGREGATION_FAILED", "loss"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_inside_the_masked_update_fails_the_round_and_nothing_is_published(
    federation: Federation, lie: str
) -> None:
    doctored, reason, text = LIES[lie]
    liar = federation.sites[LIAR]
    liar.trainer.delta = delta_of(1, size=0.9)
    before = federation.run()
    number = open_round(federation)
    liar.line.cut(after="report_prepared")
    federation.turn_until(lambda: liar.line.is_cut and federation.round(number)["state"] == "collecting")
    liar.line.mend()
    with doctored:
        liar.turn()
    assert liar.phase(number) is RoundPhase.MASKED

    found = federation.play(number)

    assert (found["state"], found["reason"]) == ("failed", reason)
    assert text in found["message"]
    assert found["adapter_digest"] == ""
    after = federation.run()
    assert after["adapter_digest"] == before["adapter_digest"]
    assert after["accepted_adapter_digest"] == before["accepted_adapter_digest"]
    assert all(adapter["round"] != number for adapter in federation.adapters())
    assert federation.audit("round_failed")[-1]["subject"] == found["name"]
    liar.trainer.delta = delta_of(1, size=0.05)
    assert federation.play(open_round(federation))["state"] == "succeeded"


def test_small_weights_and_their_rounding_are_not_taken_for_an_update_over_the_norm(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        for index in range(3):
            federation.add_site(f"site-{index}", MadeUpTrainer(delta_of(index), records=1))
        # One record each of a cap of 1000: the fixed point's steps are 1000 times as coarse in the mean.
        federation.create_run(max_update_norm=0.05)
        federation.turn_until(lambda: federation.run()["round"] >= 1)
        found = federation.play(1)

        assert found["state"] == "succeeded", found["message"]


# --- before a round ---------------------------------------------------------------------------------------------


class WithoutRecords(MadeUpTrainer):
    """Has nothing to train on until somebody puts it there; counts how often it was looked at."""

    looks = 0
    has_records = False

    def check(self, plan: Plan) -> None:
        self.looks += 1
        if not self.has_records:
            raise DataInvalid("this site has no record of domain claims")


def test_a_declined_run_is_looked_at_again_after_a_while_and_not_at_every_question(tmp_path: Path) -> None:
    """Records may be gigabytes, and a question is asked every minute."""
    with federation_in(tmp_path) as federation:
        federation.add_sites(3)
        trainer = WithoutRecords(delta_of(9))
        site = federation.add_site("late", trainer)
        federation.create_run(is_started=False)
        for _ in range(4):
            site.daemon.turn(0)
        assert trainer.looks == 1
        trainer.has_records = True
        federation.advance(REVIEW_AGAIN.total_seconds() - 1)
        site.daemon.turn(0)
        assert trainer.looks == 1
        federation.advance(1)
        site.daemon.turn(0)
        assert trainer.looks == 2
        assert {row["participant"]: row["joined"] for row in federation.run()["members"]}["participants/late"]


def test_a_site_with_another_base_model_declines_and_nobody_joins_with_a_wrong_digest(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(4)
        other = replace(MODEL, digest="cd" * 32)
        federation.sites["site-3"].close()
        federation.open_site("site-3", federation.sites["site-3"].trainer, model=other)
        federation.create_run()
        run = federation.run()

        federation.turn_until(lambda: federation.state() == "succeeded")

        members = {row["participant"]: row for row in federation.run()["members"]}
        declined = members["participants/site-3"]
        assert (declined["joined"], declined["reason"]) == (False, "BASE_MODEL_MISMATCH")
        assert "cdcdcd" in declined["message"]
        assert "abab" in declined["message"]
        assert federation.round(1)["survivors"] == [f"participants/{name}" for name in names[:3]]

        federation.create_run("second")
        digest = federation.run("second")["plan_digest"]
        client = federation.sites["site-3"].client
        with pytest.raises(BaseModelMismatch, match="byte for byte"):
            client.join_run("second", plan_digest=digest, base_model_digest="cd" * 32)
        with pytest.raises(DigestMismatch, match="fetch the plan again"):
            client.join_run("second", plan_digest=run["plan_digest"], base_model_digest=MODEL.digest)


def test_a_plan_that_is_not_the_one_announced_is_never_joined(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        federation.add_sites(3)
        federation.create_run(is_started=False)
        site = federation.sites["site-0"]
        plan = site.client.plan("run")
        site.line.doctor("plan", lambda content: content.replace(b'"element_clip":1.0', b'"element_clip":2.0'))

        site.turn()

        assert plan != site.line.carry("plan", site.client.plan, "run")
        assert all(not row["joined"] for row in federation.run()["members"])


def test_an_unknown_method_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        federation.add_sites(3)
        with pytest.raises(PlanInvalid, match="method 'fedmagic' is not known; known: fedit"):
            federation.create_run(method="fedmagic")
        with pytest.raises(NotFound, match="no run"):
            federation.run()
