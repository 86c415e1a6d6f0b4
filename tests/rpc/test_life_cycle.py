"""Certificates, CAs and keys change while a federation works: nothing is restarted, nobody is cut off by surprise."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from common.certificates import parse_certificates, serial_text
from common.errors import AccordError, CertificateRevoked, ConfigInvalid, JoinTokenInvalid, OutOfTurn, Unavailable
from common.identifiers import FederationId
from coordinator.cli.parser import build_parser
from coordinator.services.admin_client import AdminClient, OperatorIdentity
from participant.enrollment import enroll
from participant.identity import IdentityFolder
from participant.network.dialling import dial
from tests.fakes import FakeClock
from tests.rpc.federation import FEDERATION, Federation, MadeUpTrainer, delta_of, now
from tests.rpc.parts import Pki


class Host:
    """`accord-coordinator` on the coordinator's host."""

    def __init__(self, federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
        self._config = str(federation.folder / "coordinator.toml")
        self._capsys = capsys

    def __call__(self, *words: str) -> Any:
        options = build_parser().parse_args([*words, "--config", self._config, "--json"])
        self._capsys.readouterr()
        importlib.import_module(f"coordinator.cli.{options.command}").execute(options)
        return json.loads(self._capsys.readouterr().out)


@pytest.fixture
def host(federation: Federation, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(federation, capsys)


def issuers(shown: Any) -> dict[str, str]:
    return {row["name"].removeprefix("participants/"): row["ca"] for row in shown["certificates"]}


def known_authorities(federation: Federation) -> set[int]:
    """How many CAs the sites trust the coordinator by."""
    bundles = [site.connection.identity.trust_bundle for site in federation.sites.values()]
    return {len(parse_certificates(bundle, what="the trust bundle")) for bundle in bundles}


def test_another_ca_takes_over_while_rounds_go_on(federation: Federation, host: Host) -> None:
    names = federation.add_sites(3)
    federation.create_run("old", rounds=3)
    federation.play(1, run="old")
    before = {name: site.connection.identity for name, site in federation.sites.items()}

    # Staged: it counts, issues nothing, and whoever has not called since does not know it.
    federation.clock.advance(seconds=60)  # the commands read the machine's clock, which goes on
    assert host("ca", "begin")["step"] == "staged"
    with pytest.raises(OutOfTurn, match=r"site-0, participants/site-1, participants/site-2 do not know the new CA yet"):
        host("ca", "switch")
    federation.turn()  # the answer names other CAs than theirs
    federation.turn()
    assert {
        len(parse_certificates(site.connection.identity.trust_bundle, what="")) for site in federation.sites.values()
    } == {2}
    assert set(issuers(host("ca", "show")).values()) == {"issuing"}
    with pytest.raises(OutOfTurn, match=r"charter of runs/old lists only the old CA"):
        host("ca", "switch")
    waiting = federation.admin.create_join_token("late", ttl_seconds=3600)["token"]
    federation.play(2, run="old")
    federation.admin.cancel_run("runs/old", reason="its charter has the old CA alone")

    # Switched: a run under a charter with both goes on through the change.
    federation.create_run("new", rounds=2)
    federation.play(1, run="new")
    assert host("ca", "switch")["step"] == "switched"
    with pytest.raises(OutOfTurn, match=r"too early to retire: participants/site-0"):
        host("ca", "retire")
    federation.turn()
    federation.turn()
    assert issuers(host("ca", "show")) == dict.fromkeys(names, "issuing")
    assert federation.play(2, run="new")["state"] == "succeeded"
    assert len(federation.round(2, run="new")["survivors"]) == 3
    federation.reopen_site("site-1").turn()  # a fresh handshake, verified by the new CA

    # A token that was made before the switch still opens the door.
    enroll(IdentityFolder(federation.folder / "late"), waiting, federation.clock)

    # Retired: only the new CA counts, and old certificates open no connection.
    assert host("ca", "retire")["step"] == "none"
    federation.turn()
    federation.turn()
    assert all(site.turn() for site in federation.sites.values())
    assert {
        len(parse_certificates(site.connection.identity.trust_bundle, what="")) for site in federation.sites.values()
    } == {1}
    with dial(before["site-0"]) as channel, pytest.raises(Unavailable):
        _ask(channel)
    assert [event["actor"] for event in federation.audit("ca_staged") + federation.audit("ca_switched")] == ["host"] * 2
    assert federation.audit("ca_retired")


def _ask(channel: Any) -> None:
    from accord.v1 import round_pb2, round_pb2_grpc
    from common.rpc.status import raised_as_errors

    with raised_as_errors():
        round_pb2_grpc.RoundServiceStub(channel).GetAssignment(round_pb2.GetAssignmentRequest(), timeout=5)


def test_an_operator_follows_the_new_ca_and_an_old_one_is_refused(federation: Federation, host: Host) -> None:
    alice, address = federation._operator, federation.addresses
    assert address is not None
    host("operator", "create", "bob")
    host("ca", "begin")
    knowing = replace(alice, trust_bundle=federation.admin.federation()["trust_bundle"].encode())  # as `ca trust` does
    host("ca", "switch", "--force")
    with AdminClient(address.admin, knowing) as client:
        assert client.federation()["federation"] == "lab"  # the former CA's certificates count still
    with pytest.raises(OutOfTurn, match="operators/bob still have a certificate of the former CA"):
        host("ca", "retire")
    made = host("operator", "renew", "bob")
    host("ca", "retire")

    folder = federation.config.operators_folder / "bob"
    files = [(folder / name).read_bytes() for name in ("operator.pem", "operator.key", "ca.pem")]
    with AdminClient(address.admin, OperatorIdentity(*files)) as bob:
        assert bob.federation()["trust_bundle"].encode() == files[2]
        (event,) = bob.audit_events(action="operator_renewed")
        assert json.loads(event["details_json"])["serial"] == made["serial"]
    with AdminClient(address.admin, replace(knowing, trust_bundle=files[2])) as client, pytest.raises(AccordError):
        client.federation()


def test_a_ca_that_was_staged_can_be_given_up(federation: Federation, host: Host) -> None:
    first = host("ca", "show")
    host("ca", "begin")
    with pytest.raises(OutOfTurn, match="being brought in already"):
        host("ca", "begin")
    assert host("ca", "retire") == first
    with pytest.raises(OutOfTurn, match="no CA to switch to"):
        host("ca", "switch")


def test_the_files_of_another_federation_are_not_taken_for_the_databases_own(
    federation: Federation, host: Host, tmp_path: Path
) -> None:
    federation.add_sites(3)
    federation.turn()
    other = Pki.create(tmp_path / "other", FederationId(FEDERATION)).folder
    kept = {path: path.read_bytes() for path in federation.config.pki_folder.glob("ca.*")}
    for path in kept:
        path.write_bytes((other.path / path.name).read_bytes())

    with pytest.raises(ConfigInvalid, match="different federations"):
        host("ca", "begin")
    assert host("ca", "show")["step"] == "none"
    for path, content in kept.items():
        path.write_bytes(content)
    assert host("ca", "begin")["step"] == "staged"


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[Federation]:
    """A federation of half a month ago: TLS reads the machine's clock, so the test's must not run ahead of it."""
    made = Federation(tmp_path, FakeClock(now() - timedelta(days=15, hours=2)))
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_certificates_are_renewed_before_two_thirds_of_their_life_though_the_coordinator_was_away(
    earlier: Federation,
) -> None:
    federation = earlier
    names = federation.add_sites(3)
    federation.create_run(rounds=2)
    federation.play(1)
    federation.admin.pause_run("runs/run")
    before = {name: site.connection.identity.certificate for name, site in federation.sites.items()}

    federation.stop()
    federation.clock.advance(days=15, hours=1)
    federation.turn()  # nobody is there to ask
    federation.start()
    federation.clock.advance(timedelta(minutes=11))
    federation.turn()

    for name in names:
        after = federation.sites[name].connection.identity
        first, second = before[name], after.certificate
        life = first.not_valid_after_utc - first.not_valid_before_utc
        assert second.serial_number != first.serial_number
        assert federation.clock.now() < first.not_valid_before_utc + life * 2 / 3
        assert after.expires_at > first.not_valid_after_utc
        assert second.public_key() == first.public_key()
    federation.admin.resume_run("runs/run")
    federation.turn_until(lambda: federation.run()["rounds_succeeded"] == 2)  # with the new certificates


def test_a_lost_key_is_replaced_by_a_new_token_and_counts_in_runs_under_a_new_charter(federation: Federation) -> None:
    federation.add_sites(4)
    federation.create_run("before", rounds=2)
    federation.play(1, run="before")
    lost = federation.sites["site-3"]
    old = lost.connection.identity
    lost.close()

    # The same name, another key: from this moment the old certificate is nobody's.
    again = federation.folder / "site-3"
    again.rename(federation.folder / "stolen")
    site = federation.add_site("site-3", MadeUpTrainer(delta_of(7), records=300))
    with dial(old) as channel, pytest.raises(CertificateRevoked, match="enrolled with another key"):
        _ask(channel)

    # The charter of the run that goes on pins the lost key: the others finish it, and this site is not in its sums.
    found = federation.play(2, run="before")
    assert found["state"] == "succeeded"
    assert "participants/site-3" not in found["survivors"]

    federation.create_run("after", rounds=1)
    assert len(federation.play(1, run="after")["survivors"]) == 4
    assert serial_text(site.connection.identity.certificate) != serial_text(old.certificate)
    enrolled = [event["actor"] for event in federation.audit("participant_enrolled")]
    assert enrolled.count("participants/site-3") == 2


def test_a_join_token_is_for_one_name_once_and_not_for_ever(federation: Federation) -> None:
    token = federation.admin.create_join_token("bank", ttl_seconds=60)["token"]
    folder = IdentityFolder(federation.folder / "bank")
    assert enroll(folder, token, federation.clock).participant == "bank"
    with pytest.raises(JoinTokenInvalid, match="used before"):
        enroll(IdentityFolder(federation.folder / "thief"), token, federation.clock)
    late = federation.admin.create_join_token("clinic", ttl_seconds=60)["token"]
    assert [row["participant"] for row in federation.admin.join_tokens(open_only=True)] == ["participants/clinic"]
    federation.clock.advance(seconds=60)
    with pytest.raises(JoinTokenInvalid, match="expired"):
        enroll(IdentityFolder(federation.folder / "clinic"), late, federation.clock)
    refused = federation.audit("enrollment_refused")
    assert [json.loads(event["details_json"])["participant"] for event in refused] == ["bank", "clinic"]
    assert list(federation.admin.join_tokens(open_only=True)) == []
