"""Which certificates open which listener, with an own CA and with an organisation's PKI, and how often one may call."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from accord.v1 import admin_pb2 as pb
from accord.v1 import admin_pb2_grpc, round_pb2, round_pb2_grpc
from common.certificates import to_pem
from common.clock import SystemClock
from common.errors import CharterInvalid, NotFound, OutOfTurn, ResourceExhausted, Unavailable
from common.identifiers import OperatorId, OperatorIdentity, ParticipantId, Role
from common.rpc.status import raised_as_errors
from common.rpc.tls import channel_credentials
from coordinator.keystore import PkiFolder
from coordinator.pki import CertificateAuthority, key_pem, new_authority
from tests.rpc.coordinator import CONFIG, FEDERATION, running_coordinator


def ca_pem(authority: CertificateAuthority) -> bytes:
    return to_pem([authority.certificate]).encode()


def operator_of(authority: CertificateAuthority) -> tuple[bytes, bytes]:
    identity = OperatorIdentity(FEDERATION, OperatorId("eve"), Role.OPERATOR)
    issued = authority.issue_operator(identity, now=SystemClock().now())
    return issued.chain_pem.encode(), issued.key_pem


def participant_of(authority: CertificateAuthority, name: str) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_participant(key.public_key(), ParticipantId(name), now=SystemClock().now())
    return issued.chain_pem.encode(), key_pem(key)


def dial(address: str, trusted: bytes, identity: tuple[bytes, bytes]) -> grpc.Channel:
    chain, key = identity
    return grpc.secure_channel(address, channel_credentials(trust_bundle=trusted, certificate_chain=chain, key=key))


def test_a_partners_ca_makes_participants_and_no_operators(tmp_path):
    partner = new_authority(FEDERATION, now=SystemClock().now())
    with running_coordinator(tmp_path) as running:
        trusted = PkiFolder(running.config.pki_folder).trusted
        trusted.mkdir()
        (trusted / "partner.pem").write_bytes(ca_pem(partner))
        own = ca_pem(running.authority)
        as_operator = dial(running.addresses.admin, own, operator_of(partner))
        with as_operator, pytest.raises(Unavailable), raised_as_errors():
            admin_pb2_grpc.AdminServiceStub(as_operator).GetFederation(pb.GetFederationRequest(), timeout=10)
        # The same CA's participant passes the handshake, and hears that there is no charter yet.
        as_site = dial(running.addresses.participants, own, participant_of(partner, "guest"))
        with as_site, pytest.raises(NotFound), raised_as_errors():
            round_pb2_grpc.RoundServiceStub(as_site).GetCharter(round_pb2.GetCharterRequest(), timeout=10)


def own_pki(folder: Path) -> tuple[str, CertificateAuthority, CertificateAuthority]:
    """A configuration with an organisation's files; the CAs of its operators (and server) and of its partners."""
    house, partners = (new_authority(FEDERATION, now=SystemClock().now()) for _ in range(2))
    server = house.issue_server(["127.0.0.1"], now=SystemClock().now())
    (folder / "server.pem").write_text(server.chain_pem)
    (folder / "server.key").write_bytes(server.key_pem)
    (folder / "operators.pem").write_bytes(ca_pem(house))
    (folder / "partners.pem").write_bytes(ca_pem(partners))
    text = (
        f'{CONFIG}[certificates]\nmode = "files"\ncertificate = "server.pem"\nkey = "server.key"\n'
        'operator_cas = "operators.pem"\nparticipant_cas = "partners.pem"\n'
    )
    return text, house, partners


def test_a_coordinator_without_a_ca_of_its_own_serves_and_invites_nobody(tmp_path):
    text, house, partners = own_pki(tmp_path)
    with running_coordinator(tmp_path, text) as running:
        assert running.addresses.enrollment == ""
        with dial(running.addresses.admin, ca_pem(house), operator_of(house)) as channel:
            admin = admin_pb2_grpc.AdminServiceStub(channel)
            assert not admin.GetFederation(pb.GetFederationRequest()).HasField("ca_expire_time")
            with pytest.raises(OutOfTurn, match="PKI"), raised_as_errors():
                admin.CreateJoinToken(pb.CreateJoinTokenRequest(participant_id="bank"))
            with pytest.raises(CharterInvalid, match="--member-ca NAME=FILE"), raised_as_errors():
                admin.DraftCharter(pb.DraftCharterRequest())
        strange = dial(running.addresses.admin, ca_pem(house), operator_of(partners))
        with strange, pytest.raises(Unavailable), raised_as_errors():
            admin_pb2_grpc.AdminServiceStub(strange).GetFederation(pb.GetFederationRequest(), timeout=10)


def test_a_caller_that_calls_too_often_is_told_when_to_try_again(tmp_path):
    text = CONFIG.replace("calls_per_second = 1000.0", "calls_per_second = 0.001").replace(
        "calls_burst = 1000", "calls_burst = 3"
    )
    with running_coordinator(tmp_path, text) as running:
        alice, bob = running.admin("alice"), running.admin("bob")
        for _ in range(3):
            alice.GetFederation(pb.GetFederationRequest())
        with pytest.raises(ResourceExhausted, match="operators/alice") as refused, raised_as_errors():
            alice.GetFederation(pb.GetFederationRequest())
        assert float(refused.value.metadata["retry_seconds"]) > 0
        assert bob.GetFederation(pb.GetFederationRequest()).federation == "lab"
