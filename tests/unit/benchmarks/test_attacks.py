"""The demonstration of the three attacks: nothing is learned, and it would notice if something were."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.attacks import __main__ as command
from benchmarks.attacks.__main__ import demonstrate
from benchmarks.attacks.attacker import NAMES, VICTIM, Attacker, correlation
from benchmarks.attacks.report import told
from benchmarks.lying_coordinator import World
from common import log
from common.secagg import hashing


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    found = demonstrate(tmp_path_factory.mktemp("attacks"))
    return dict(zip(("alive_and_dead", "alone", "invented"), found, strict=True))


def test_no_attack_learns_anything(findings):
    assert [finding.has_learned for finding in findings.values()] == [False, False, False]
    assert all("learned:  nothing" in told(finding) for finding in findings.values())


def test_the_comparison_finds_the_update_once_the_victims_own_masks_are_off(findings):
    for name in ("alive_and_dead", "alone"):
        assert findings[name].control == pytest.approx(1.0, abs=1e-3)


def test_both_kinds_of_share_of_one_member_are_never_to_be_had(findings):
    finding = findings["alive_and_dead"]
    assert finding.holds[1] == "4 of 4 shares of its escrow key, so 4 of 4 pair masks"
    assert finding.holds[2] == "2 of 4 shares of its self mask's key"
    refused = [exchange.answered.partition(":")[0] for exchange in finding.exchanges if exchange.is_refused]
    assert refused == ["PROTOCOL_VIOLATION", "SECOND_SURVIVOR_SET"]


def test_a_sum_over_the_victim_alone_is_refused_by_everyone_at_every_step(findings):
    exchanges = findings["alone"].exchanges
    assert len(exchanges) == 12
    assert all(exchange.is_refused for exchange in exchanges)


def test_the_victim_masks_nothing_under_invented_keys(findings):
    finding = findings["invented"]
    refused = [exchange.answered.partition(":")[0] for exchange in finding.exchanges if exchange.is_refused]
    assert refused == [
        "MEMBER_REJECTED",
        "MEMBER_REJECTED",
        "SIGNATURE_INVALID",
        "SIGNATURE_INVALID",
        "PROTOCOL_VIOLATION",
    ]
    assert finding.correlation is None


def test_an_attacker_with_both_secrets_of_the_victim_is_reported(tmp_path):
    """With what no honest majority gives, the same computation opens the upload, and the demonstration says so."""
    world = World(tmp_path, NAMES, seed=1)
    try:
        attacker = Attacker(world)
        played = attacker.play_to_uploads()
        own = played.control
        left = attacker.left_of_upload(played, self_seeds=[own.self_seed], pair_seeds=own.pair_seeds)
        finding = attacker.finding("leak", holds=(), attempt="", left=left, played=played)
    finally:
        world.close()
    assert finding.has_learned
    assert "PART OF THE UPDATE" in told(finding)
    assert np.max(np.abs(left - world.members[VICTIM].update)) < 2 * world.plan.masking.element_clip / 512


def test_a_wrong_self_mask_or_a_missing_pair_mask_leaves_noise(tmp_path):
    world = World(tmp_path, NAMES, seed=2)
    try:
        attacker = Attacker(world)
        played = attacker.play_to_uploads()
        own, truth = played.control, world.members[VICTIM].update
        wrong = hashing.self_mask_seed(bytes(32), played.context.hash, played.victim)
        fewer = dict(list(own.pair_seeds.items())[1:])
        for self_seed, pair_seeds in ((wrong, own.pair_seeds), (own.self_seed, fewer)):
            left = attacker.left_of_upload(played, self_seeds=[self_seed], pair_seeds=pair_seeds)
            assert abs(correlation(left, truth)) < 6 / truth.size**0.5
    finally:
        world.close()


def test_the_exit_code_says_whether_an_attack_has_learned_something(monkeypatch, capsys, findings):
    leaked = replace(findings["alone"], correlation=0.5)
    for found, code in (([findings["alone"]], 0), ([leaked], 1)):
        monkeypatch.setattr(command, "demonstrate", lambda folder, found=found: found)
        monkeypatch.setattr(log, "configure", lambda **settings: None)
        monkeypatch.setattr(sys, "argv", ["attacks", "--json"])
        assert command.main() == code
        printed = json.loads(capsys.readouterr().out)
        assert printed["accord"][0]["has_learned"] is bool(code)
        assert printed["flower"] == []


def test_a_python_without_flower_is_refused_before_anything_is_attacked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attacks", "--flower", sys.executable])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert f"{sys.executable} cannot import flwr" in capsys.readouterr().err
    assert find_spec(command.FLOWER_MODULE) is not None
