"""Figures that too few sites have: zeros at the coordinator, no figure for anybody, and a round that says so."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from common.plan import HELD_OUT_GROUP
from common.secagg import Masking, Signed, Words
from common.secagg.encoding import Kind, Reader
from common.secagg.messages import Advertisement
from common.secagg.roster import _encode
from coordinator.aggregation import OpenSum
from coordinator.cli import rounds
from coordinator.store.opening import open_blobs, open_store
from coordinator.unmasking import open_unmasking
from coordinator.uploads import UploadReader, upload_prefix
from participant.journal import EpochPhase
from tests.rpc.federation import Federation, MadeUpTrainer, delta_of

CLASSIFIES = {"classification_correct": 3.0, "classification_total": 8.0}
NAMES = {"span_true_positives": 5.0, "span_false_positives": 2.0}
BOTH = frozenset((HELD_OUT_GROUP, "classification"))


def add_site(federation: Federation, name: str, *groups: str, metrics: Mapping[str, float]) -> None:
    trainer = MadeUpTrainer(
        delta_of(int(name[-1])), records=500, metrics=metrics, groups=frozenset((HELD_OUT_GROUP, *groups))
    )
    federation.add_site(name, trainer)


def add_one_that_classifies(federation: Federation, *, sites: int = 3) -> None:
    """site-0 alone has records of a classification."""
    add_site(federation, "site-0", "classification", metrics=CLASSIFIES)
    for index in range(1, sites):
        add_site(federation, f"site-{index}", "ner", metrics=NAMES)


def figures_of(found: Mapping[str, Any]) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in found["metrics"]}


def closed_in(found: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {group["name"]: (group["contributors"], group["needed"]) for group in found["closed_metric_groups"]}


def unmasked_words(federation: Federation, number: int) -> dict[str, int]:
    """All that the coordinator has of a round's metrics: the words of the sum, with the masks off."""
    store, blobs = open_store(federation.config.database_url), open_blobs(federation.config.blobs_url)
    try:
        with store.read() as reader:
            run, round_ = reader.run("run"), reader.round("run", number)
            unmasking = open_unmasking(reader, run, round_)
        layout = unmasking.context.layout
        uploads = [UploadReader(blobs, upload_prefix("run", number, name), layout) for name in round_.survivors]
        opened = OpenSum(unmasking, uploads)
        words = opened.words(layout.tail_chunk, opened.unmasker())
    finally:
        store.close()
    return dict(zip(opened.plan.metric_words, words[2:].tolist(), strict=True))


def test_what_one_site_alone_has_is_zero_in_the_sum_and_no_figure_anywhere(federation: Federation) -> None:
    add_one_that_classifies(federation)
    federation.create_run(rounds=1)
    for number in (1, 2):
        found = federation.play(number)
        words = unmasked_words(federation, number)
        assert found["state"] == "succeeded"
        assert words["heldout_tokens"] == 150 << 20
        assert {name: word for name, word in words.items() if name in (*CLASSIFIES, *NAMES)} == dict.fromkeys(
            (*CLASSIFIES, *NAMES), 0
        )
        assert figures_of(found)["heldout_loss"] == pytest.approx(2.0)
        assert not {"classification_accuracy", "span_f1", "rouge_l"} & figures_of(found).keys()
        assert closed_in(found) == {"classification": (1, 3), "ner": (2, 3), "instruction": (0, 3)}
    manifest = json.loads(federation.adapters()[0]["manifest_json"])
    assert "heldout_loss" in manifest["metrics"]
    assert "classification_accuracy" not in manifest["metrics"]
    chosen = json.loads(federation.audit("cohort_chosen")[0]["details_json"])
    assert chosen["closed_groups"] == ["classification", "ner", "instruction"]
    assert federation.audit("closed_groups_ignored") == []


def test_an_operator_who_shows_a_round_reads_which_figures_are_not_shared_and_why(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    add_one_that_classifies(federation)
    federation.create_run(rounds=1)
    federation.play(1)
    with patch.object(rounds, "open_client", lambda options: nullcontext(federation.admin)):
        rounds.execute(Namespace(action="show", run="run", number=1, json=False))
    told = " ".join(capsys.readouterr().out.split())
    assert "classification figures not shared: fewer than 3 contributors in the cohort (1)" in told
    assert "held_out figures" not in told


def test_what_enough_sites_have_is_summed(federation: Federation) -> None:
    for index in range(3):
        add_site(federation, f"site-{index}", "classification", metrics=CLASSIFIES)
    federation.create_run(rounds=1)
    found = federation.play(1)
    assert unmasked_words(federation, 1)["classification_total"] == 24 << 20
    assert figures_of(found)["classification_accuracy"] == pytest.approx(3 / 8)
    assert closed_in(found) == {"ner": (0, 3), "instruction": (0, 3)}


def test_a_held_out_loss_that_one_site_alone_has_is_not_shared_and_the_candidate_passes(federation: Federation) -> None:
    for index in range(3):
        trainer = MadeUpTrainer(delta_of(index), records=500, groups=frozenset((HELD_OUT_GROUP,) if index == 0 else ()))
        federation.add_site(f"site-{index}", trainer)
    federation.create_run(rounds=1)
    federation.play(1)
    last = federation.play(2)
    assert unmasked_words(federation, 2)["heldout_loss"] == 0
    assert "heldout_loss" not in figures_of(last)
    assert closed_in(last)[HELD_OUT_GROUP] == (1, 3)
    (line,) = federation.audit("adapter_accepted")
    assert "too few of the cohort have held-out records" in line["details_json"]


def test_a_site_whose_data_change_shares_no_more_before_the_next_key_epoch(federation: Federation) -> None:
    for index in range(3):
        add_site(federation, f"site-{index}", *(("classification",) if index else ()), metrics=CLASSIFIES)
    federation.create_run(rounds=3, rounds_per_epoch=2)
    federation.play(1)
    federation.sites["site-0"].trainer.groups = BOTH
    second, third = federation.play(2), federation.play(3)
    assert (second["epoch"], third["epoch"]) == (1, 2)
    assert closed_in(second)["classification"] == (2, 3)
    assert "classification_accuracy" not in figures_of(second)
    assert figures_of(third)["classification_accuracy"] == pytest.approx(3 / 8)


def test_a_declaration_outlives_a_restart_of_its_site(federation: Federation) -> None:
    for index in range(3):
        add_site(federation, f"site-{index}", "classification", metrics=CLASSIFIES)
    federation.create_run(rounds=2)
    federation.play(1)
    federation.sites["site-0"].trainer.groups = frozenset()
    federation.reopen_site("site-0")
    assert figures_of(federation.play(2))["classification_accuracy"] == pytest.approx(3 / 8)


def test_a_site_that_fills_a_closed_group_all_the_same_is_ignored_and_the_round_goes_on(federation: Federation) -> None:
    add_one_that_classifies(federation)
    federation.create_run(rounds=1)
    honest = Masking.pack_tail

    def lying(phase: Masking, *, fixed_alpha: int, metrics: Mapping[str, float]) -> Words:
        words = honest(phase, fixed_alpha=fixed_alpha, metrics=metrics)
        at = 2 + phase.context.epoch.plan.metric_words.index("classification_total")
        words[at] = 8 << 20
        return words

    with patch.object(Masking, "pack_tail", lying):
        found = federation.play(1)
    assert found["state"] == "succeeded"
    assert "classification_accuracy" not in figures_of(found)
    (line,) = federation.audit("closed_groups_ignored")
    assert line["subject"] == "runs/run/rounds/1"
    assert json.loads(line["details_json"])["groups"] == ["classification"]


# --- a coordinator that lies to a site about the others ---------------------------------------------------------


def with_declaration(message: bytes, member: str, groups: tuple[str, ...]) -> bytes:
    """The roster with another declaration in a member's name, its signature as it was."""
    reader = Reader(message, Kind.ROSTER)
    epoch_hash, messages = reader.fixed(32), list(reader.blobs(1024))
    for at, one in enumerate(messages):
        signed = Signed.decode(one)
        body = Advertisement.decode(signed.body)
        if body.org_id == member:
            messages[at] = replace(signed, body=replace(body, metric_groups=groups).encode()).encode()
    return _encode(epoch_hash, messages)


@pytest.mark.parametrize(
    ("member", "groups"),
    [
        ("site-1", (HELD_OUT_GROUP, "classification", "ner")),
        ("site-2", (HELD_OUT_GROUP,)),
        ("site-0", (HELD_OUT_GROUP,)),
    ],
    ids=["one more that classifies", "one fewer that names", "its own cut short"],
)
def test_a_site_that_is_shown_another_declaration_than_was_signed_deals_nothing(
    federation: Federation, member: str, groups: tuple[str, ...]
) -> None:
    """A coordinator that could, would make a site believe that its figures are among many."""
    add_one_that_classifies(federation, sites=4)
    victim = federation.sites["site-0"]
    victim.line.doctor("roster", lambda message: with_declaration(message, member, groups))
    federation.create_run(rounds=1)
    found = federation.play(1)
    assert "roster" in victim.line.calls
    assert "deposit_shares" not in victim.line.attempts
    journal = victim.journal()
    try:
        entry = journal.epoch("run", 1)
    finally:
        journal.close()
    assert entry is not None
    assert entry.phase is EpochPhase.ADVERTISING
    assert (found["state"], "participants/site-0" in found["cohort"]) == ("succeeded", False)
