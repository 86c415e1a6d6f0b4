"""A federation whose members' certificates come from PKIs of their own: nobody enrols, and rounds are the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from common.durable import write_durably
from common.errors import CertificateRevoked, CharterInvalid, NotFound, NotInCohort
from common.identifiers import FederationId
from coordinator.keystore import PkiFolder
from demo.ports import HOST
from participant.client import CoordinatorClient
from participant.identity import OwnPki
from participant.network.dialling import dial
from tests.fakes import FakeClock
from tests.rpc.federation import FEDERATION, Federation, MadeUpTrainer, delta_of, now
from tests.rpc.parts import Pki

NAMES = ("bank", "clinic", "mill")

CERTIFICATES = """
[certificates]
mode = "files"
certificate = "data/pki/server.pem"
key = "data/pki/server.key"
participant_cas = "members.pem"
operator_cas = "data/pki/ca.pem"
"""


class Members:
    """Each member's PKI, and the files that it has put into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pkis = {name: Pki.create(folder / f"pki-{name}", FederationId(FEDERATION)) for name in NAMES}
        (folder / "members.pem").write_bytes(b"".join(pki.trust_bundle for pki in self.pkis.values()))

    @property
    def authorities(self) -> dict[str, str]:
        return {name: pki.trust_bundle.decode() for name, pki in self.pkis.items()}

    def issue(self, name: str, *, by: str | None = None, files: str | None = None, days: int = 30) -> dict[str, Path]:
        """A new key and certificate for a name, put where a site of its own PKI reads them."""
        issued = self.pkis[by or name].participant(name, life=timedelta(days=days))
        files = files or name
        found = {kind: self.folder / f"{files}.{kind}" for kind in ("certificate", "key")}
        write_durably(found["key"], issued.key, mode=0o600)
        write_durably(found["certificate"], issued.chain)
        return found | {"trust": self.folder / "data" / "pki" / "ca.pem"}

    def identity(self, files: dict[str, Path], federation: Federation) -> OwnPki:
        assert federation.addresses is not None
        return OwnPki(files["certificate"], files["key"], files["trust"], federation.addresses.participants)


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members(tmp_path)


@pytest.fixture
def federation(tmp_path: Path, members: Members) -> Iterator[Federation]:
    """Three sites, and a charter that names each one's own CA."""

    made = Federation(tmp_path, FakeClock(now()), sections=CERTIFICATES)
    try:
        pki = PkiFolder(made.config.pki_folder)
        pki.ensure_server_certificate(pki.load_authority(FederationId(FEDERATION)), [HOST], made.clock)
        made.start()
        for index, name in enumerate(NAMES):
            trainer = MadeUpTrainer(delta_of(index), records=400 + 100 * index)
            made.add_site_of_its_own_pki(name, trainer, members.issue(name))
        yield made
    finally:
        made.close()


def test_a_federation_of_own_pkis_plays_a_round_and_nobody_enrols(federation, members):
    federation.create_run(member_cas=members.authorities, rounds=1)
    assert federation.play(1)["state"] == "succeeded"

    errors, bound = federation.errors(1, NAMES)
    assert errors.max() <= bound
    assert sorted(event["actor"] for event in federation.audit("participant_introduced")) == [
        f"participants/{name}" for name in NAMES
    ]


def test_a_pki_that_gives_another_key_between_rounds_restarts_nothing(federation, members):
    federation.create_run(member_cas=members.authorities, rounds=2)
    assert federation.play(1)["state"] == "succeeded"
    before = federation.admin.participant("participants/bank")

    members.issue("bank", days=90)
    assert federation.play(2)["state"] == "succeeded"

    assert len(federation.round(2)["survivors"]) == len(NAMES)
    after = federation.admin.participant("participants/bank")
    assert after["identity_key_sha256"] != before["identity_key_sha256"]
    assert after["certificate_expire_time"] > before["certificate_expire_time"]
    assert [event["actor"] for event in federation.audit("participant_introduced")].count("participants/bank") == 2


def test_a_certificate_that_is_half_replaced_leaves_the_site_at_work(federation, members, caplog):
    federation.create_run(member_cas=members.authorities, rounds=1)
    federation.turn()
    key = members.folder / "bank.key"
    whole = key.read_bytes()
    key.write_bytes(members.pkis["bank"].participant("bank").key)

    with caplog.at_level(logging.ERROR):
        assert federation.play(1)["state"] == "succeeded"
    said = [record for record in caplog.records if "certificate_not_renewed" in str(record.msg)]
    assert len(said) == 1, "said once, not at every turn"
    assert "bank.key" in str(said[0].msg)
    key.write_bytes(whole)
    assert federation.sites["bank"].turn()


@pytest.mark.parametrize("is_known", [False, True], ids=["before it is known", "when it is known"])
def test_one_members_ca_cannot_take_the_name_of_another(federation, members, is_known):
    federation.create_run(member_cas=members.authorities, rounds=1)
    if is_known:
        federation.turn()
    forged = members.issue("clinic", by="bank", files="forged")
    identity = members.identity(forged, federation).load()

    with dial(identity) as channel:
        client = CoordinatorClient(channel, channel, software_version="test")
        with pytest.raises(CertificateRevoked if is_known else NotInCohort, match="clinic"):
            client.assignments("", wait_seconds=0)
    introduced = [event["actor"] for event in federation.audit("participant_introduced")]
    assert introduced.count("participants/clinic") == int(is_known)


def test_a_draft_without_a_members_ca_says_how_it_is_given(federation, members):
    federation.create_run(member_cas=members.authorities)
    federation.turn()  # they are known now, and by that alone nobody can say whose certificates count

    with pytest.raises(CharterInvalid, match=r"each member's \(bank, clinic, mill\): .*--member-ca NAME=FILE"):
        federation.admin.draft_charter(participants=(), least_cohort=3, colluders=None, base_model_digests=())


def test_files_that_are_missing_are_named_with_what_puts_them_there(federation, members):
    files = members.issue("bank", files="gone")
    files["certificate"].unlink()

    with pytest.raises(NotFound, match=r"gone\.certificate does not exist: your own PKI"):
        members.identity(files, federation).load()
