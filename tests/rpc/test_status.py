"""`accord-coordinator status` and `accord-participant status`, as who types them sees them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator

import pytest

from common.cli import watching
from coordinator import __main__ as coordinator
from participant import __main__ as participant
from tests.rpc.federation import POLICY, Federation, MadeUpTrainer, delta_of, federation_in

BUDGET = POLICY + "[privacy]\nepsilon = 8.0\ndelta = 1e-5\n"
SITE = """
state_directory = "."
policy_file = "policy.toml"
base_models = [{ source = "/nowhere" }]
data = { train_file = "/nowhere" }
charter = { mode = "coordinator" }
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Federation]:
    """Two rounds are over; in the third two are there, one is silent, and one has declined the run."""
    with federation_in(tmp_path_factory.mktemp("seen")) as lab:
        for index in range(3):
            trainer = MadeUpTrainer(delta_of(index), loss=lambda round_: 3.0 - round_ / 10)
            lab.add_site(f"site-{index}", trainer, policy=BUDGET)
        lab.add_site("strict", MadeUpTrainer(delta_of(9)), policy=POLICY.replace("most_rank = 64", "most_rank = 2"))
        lab.create_run(rounds=5)
        for number in (1, 2):
            assert lab.play(number)["state"] == "succeeded"
        lab.sites["site-2"].line.cut()
        lab.turn_until(lambda: lab.run()["round"] == 3, sites=["site-0", "site-1"])
        lab.turn(["site-0", "site-1"])
        yield lab


@pytest.fixture
def status(lab, tmp_path, capsys):
    flags = ["--address", lab.addresses.admin]
    operator = lab._operator
    for name, content in (
        ("cert", operator.certificate_chain),
        ("key", operator.key),
        ("ca", operator.trust_bundle),
    ):
        (tmp_path / name).write_bytes(content)
        flags += [f"--{name}", str(tmp_path / name)]

    def run(*more: str) -> str:
        assert coordinator.main(["status", *flags, *more]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def site_status(lab, capsys):
    def run(*more: str) -> str:
        file = lab.sites["site-0"].state / "participant.toml"
        file.write_text(SITE)
        assert participant.main(["status", "--config", str(file), *more]) == 0
        return capsys.readouterr().out

    return run


def test_an_operator_sees_the_phase_who_is_awaited_who_is_out_and_where_the_loss_goes(status):
    text = " ".join(status().split())
    assert "rounds 2 of 5 succeeded" in text
    assert "phase round 3, forming; 2 done, 3 needed;" in text
    assert "held-out loss 2.900 → 2.800 (falls)" in text
    assert "awaited site-2" in text
    assert "out strict POLICY_REFUSAL" in text
    assert "29 d 23 h left" in text


def test_scripts_get_the_same(status):
    found = json.loads(status("--json"))
    (run,) = found["open_runs"]
    assert run["waits"]["round"] == "runs/run/rounds/3"
    assert [row["round"] for row in run["losses"]] == [1, 2]
    assert {row["participant"] for row in run["waits"]["awaited"]} == {"participants/site-2"}


def test_a_site_sees_its_certificate_its_budget_and_its_own_losses(site_status):
    text = " ".join(site_status().split())
    assert "site-0 of federation lab" in text
    assert "the daemon is running" in text
    assert "privacy: epsilon 0.00 is spent on training of a budget of 8" in text
    assert "run/2 train over succeeded 2.8" in text
    found = json.loads(site_status("--json"))
    assert found["privacy"]["training"] == {"epsilon_spent": 0.0, "epsilon_budget": 8.0}


def test_watching_shows_it_again_until_it_is_interrupted(monkeypatch):
    shown: list[int] = []

    def show() -> int:
        shown.append(len(shown))
        if len(shown) == 3:
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr("common.cli.watching.time.sleep", lambda seconds: None)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        watching.watched(2.0, show)
    assert shown == [0, 1, 2]
    assert watching.watched(None, lambda: 4) == 4
