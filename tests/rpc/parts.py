"""A CA, listeners over real TLS, and callers of every kind, for tests of what is between a client and a handler.

TLS reads the machine's clock, so certificates are issued as of now; the guard's clock can be moved on from there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import serial_text, spki_sha256
from common.clock import SystemClock
from common.identifiers import FederationId, OperatorId, OperatorIdentity, ParticipantId, Role
from common.rpc.channels import channel_options, server_options
from common.rpc.interceptors import CallGuard
from common.rpc.tls import ServerTls, channel_credentials, mutual_tls
from coordinator.keystore import PkiFolder
from coordinator.pki import CertificateAuthority, IssuedCertificate, key_pem
from tests.fakes import FakeClock

FEDERATION = FederationId("north")
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Credential:
    """What a client shows: PEM chain and key."""

    chain: bytes
    key: bytes
    serial: str
    spki_sha256: str


@dataclass(frozen=True)
class Pki:
    """A federation's CA in a folder, with certificates on request."""

    folder: PkiFolder
    authority: CertificateAuthority
    federation: FederationId = FEDERATION
    now: datetime = field(default_factory=lambda: SystemClock().now())

    @classmethod
    def create(
        cls, path: Path, federation: FederationId = FEDERATION, host_names: Sequence[str] = ("localhost", HOST)
    ) -> Pki:
        folder = PkiFolder(path)
        # Old enough to have issued certificates that have expired since.
        authority = folder.create_authority(federation, FakeClock(SystemClock().now() - timedelta(days=365)))
        folder.ensure_server_certificate(authority, list(dict.fromkeys(host_names)), SystemClock())
        return cls(folder, authority, federation)

    @property
    def trust_bundle(self) -> bytes:
        return self.folder.trust_bundle().encode()

    @property
    def tls(self) -> ServerTls:
        return ServerTls(
            self.folder.server_certificate,
            self.folder.server_key,
            (self.folder.authority_certificate,),
            authority_folders=(self.folder.trusted,),
        )

    def participant(
        self, name: str, *, age: timedelta = timedelta(), life: timedelta = timedelta(days=30)
    ) -> Credential:
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self.authority.issue_participant(key.public_key(), ParticipantId(name), now=self.now - age, life=life)
        return credential(issued, key_pem(key))

    def operator(self, name: str, role: Role) -> Credential:
        issued = self.authority.issue_operator(OperatorIdentity(self.federation, OperatorId(name), role), now=self.now)
        return credential(issued, issued.key_pem)

    def server_as_client(self) -> Credential:
        issued = self.authority.issue_server([HOST], now=self.now)
        return credential(issued, issued.key_pem)


def credential(issued: IssuedCertificate, key: bytes) -> Credential:
    return Credential(
        chain=issued.chain_pem.encode(),
        key=key,
        serial=serial_text(issued.certificate),
        spki_sha256=spki_sha256(issued.certificate.public_key()),
    )


@asynccontextmanager
async def serving(
    handlers: Iterable[grpc.GenericRpcHandler],
    guard: CallGuard,
    credentials: grpc.ServerCredentials,
) -> AsyncIterator[int]:
    """A grpc.aio server behind the guard; yields its port."""
    server = grpc.aio.server(interceptors=[guard], options=server_options())
    server.add_generic_rpc_handlers(tuple(handlers))
    port = server.add_secure_port(f"{HOST}:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def serving_mutual_tls(
    handlers: Iterable[grpc.GenericRpcHandler], guard: CallGuard, pki: Pki
) -> AsyncIterator[int]:
    async with serving(handlers, guard, mutual_tls(pki.tls)) as port:
        yield port


@asynccontextmanager
async def dialling(
    port: int, *, trust_bundle: bytes, caller: Credential | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A client's channel with the product's options."""
    credentials = channel_credentials(
        trust_bundle=trust_bundle,
        certificate_chain=caller.chain if caller else None,
        key=caller.key if caller else None,
    )
    async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials, options=channel_options()) as channel:
        yield channel
