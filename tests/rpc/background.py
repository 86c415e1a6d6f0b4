"""A coordinator's two outer listeners in a thread of their own, for tests of sync code and of real processes.

Real TLS, store, guard and servicers; in its hands alone are its clock, and the time that it tells to callers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from accord.v1 import enrollment_pb2_grpc, round_pb2_grpc
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter, CharterMember, canonical_authority
from common.clock import SystemClock
from common.identifiers import ParticipantId, ParticipantIdentity
from common.rpc.channels import server_options
from common.rpc.interceptors import CallGuard, NobodyRevoked
from common.rpc.tls import ServerTls, mutual_tls, server_tls
from coordinator.authorization import RULES, StoredRevocations
from coordinator.invitations import Inviter
from coordinator.services.enrollment import EnrollmentServicer
from coordinator.services.round import RoundServicer
from coordinator.store.interface import Store
from coordinator.store.opening import open_store
from coordinator.store.schema import migrate
from coordinator.wakeups import Wakeups
from participant.enrollment import enroll
from participant.identity import IdentityFolder, SiteIdentity
from tests.rpc.parts import FEDERATION, HOST, Pki

SITES = ("bank", "clinic", "newsroom")


@dataclass
class Told:
    """What the coordinator takes for the time; None: the real one."""

    time: datetime | None = None


class ToldClock:
    """The clock of a coordinator whose machine a test has set wrong."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def now(self) -> datetime:
        return self._told.time or SystemClock().now()


@dataclass
class BackgroundCoordinator:
    """What a test may ask of it; `port` is the participants' listener."""

    pki: Pki
    store: Store
    enrollment_port: int
    port: int
    told: Told = field(default_factory=Told)
    host: str = HOST

    def invite(self, participant: str) -> str:
        """A join token's text."""
        row, text = Inviter(
            federation=FEDERATION,
            enrollment_address=f"{self.host}:{self.enrollment_port}",
            coordinator_address=f"{self.host}:{self.port}",
            authority=self.pki.folder.trust_bundle,
            clock=SystemClock(),
        ).invite(ParticipantId(participant), life=timedelta(hours=1))
        with self.store.write() as writer:
            writer.add_join_token(row)
        return text

    def enroll(self, folder: Path, participant: str = "bank") -> SiteIdentity:
        """A site's identity, made as the participant's own code makes it."""
        return enroll(IdentityFolder(folder), self.invite(participant), SystemClock())

    def publish(self, charter: Charter) -> None:
        with self.store.write() as writer:
            writer.publish_charter(charter.to_bytes(), charter.digest, at=SystemClock().now())

    def revoke(self, participant: str) -> None:
        with self.store.write() as writer:
            writer.revoke_participant(participant, at=SystemClock().now(), reason="left the federation")

    def charter(self, **key_of: str) -> Charter:
        """A charter of SITES. key_of: pinned identity keys by member."""
        authority = canonical_authority(self.pki.folder.trust_bundle())
        return Charter(
            federation=FEDERATION,
            members=tuple(
                CharterMember(
                    site, ParticipantIdentity(FEDERATION, ParticipantId(site)).uri, (authority,), key_of.get(site)
                )
                for site in SITES
            ),
            coordinator_public_key="cd" * 32,
            least_cohort=3,
            colluders=None,
            base_model_digests=(),
            bounds=USUAL_BOUNDS,
            form=CHARTER_FORM,
        )


@contextmanager
def coordinator_in_background(
    folder: Path, *, server: Pki | None = None, host: str = HOST, listen: str = HOST
) -> Iterator[BackgroundCoordinator]:
    """Serve until the end of the block. server: whose certificates are shown; the callers' CA is always its own.

    host: what join tokens tell sites to dial, and what the certificate is for.
    """
    pki = Pki.create(folder / "pki", host_names=("localhost", HOST, host.strip("[]")))
    url = f"sqlite:///{folder / 'coordinator.sqlite'}"
    migrate(url)
    store = open_store(url)
    loop, told = asyncio.new_event_loop(), Told()
    thread = threading.Thread(target=loop.run_forever, name="coordinator")
    thread.start()
    try:
        servers, ports = asyncio.run_coroutine_threadsafe(_serve(pki, server or pki, store, told, listen), loop).result(
            30
        )
        try:
            yield BackgroundCoordinator(pki, store, ports[0], ports[1], told, host)
        finally:
            asyncio.run_coroutine_threadsafe(_stop(servers), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        store.close()


async def _serve(
    pki: Pki, shown: Pki, store: Store, told: Told, listen: str
) -> tuple[list[grpc.aio.Server], list[int]]:
    clock = ToldClock(told)
    enrollment = EnrollmentServicer(
        store=store, authority=lambda: pki.authority, trust_bundle=pki.folder.trust_bundle, clock=clock
    )
    rounds = RoundServicer(store=store, wakeups=Wakeups(), clock=clock)
    guards = (
        CallGuard(federation=FEDERATION, rules=RULES, revocations=NobodyRevoked(), clock=clock),
        CallGuard(federation=FEDERATION, rules=RULES, revocations=StoredRevocations(store, clock), clock=clock),
    )
    tls = replace(pki.tls, certificate=shown.tls.certificate, key=shown.tls.key)
    credentials = (
        server_tls(ServerTls(tls.certificate, tls.key)),
        mutual_tls(tls),
    )
    servers, ports = [], []
    for guard, credential in zip(guards, credentials, strict=True):
        server = grpc.aio.server(interceptors=[guard], options=server_options())
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(enrollment, server)
        round_pb2_grpc.add_RoundServiceServicer_to_server(rounds, server)
        ports.append(server.add_secure_port(f"{listen}:0", credential))
        await server.start()
        servers.append(server)
    return servers, ports


async def _stop(servers: list[grpc.aio.Server]) -> None:
    for server in servers:
        await server.stop(None)
    # What the servers' own end has set off is done before the loop stops.
    await asyncio.gather(
        *(task for task in asyncio.all_tasks() if task is not asyncio.current_task()), return_exceptions=True
    )


def foreign_identity(pki: Pki, folder: Path, *, participant: str, trust_bundle: str, address: str) -> None:
    """An identity folder whose certificate another CA has issued."""
    from participant.identity import Enrollment

    identity = IdentityFolder(folder)
    key = identity.ensure_key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = SystemClock().now()
    issued = pki.authority.issue_participant(key.public_key(), ParticipantId(participant), now=now)
    identity.enroll(
        Enrollment(pki.federation, participant, address, is_renewed_by_coordinator=True),
        certificate_chain=issued.chain_pem,
        trust_bundle=trust_bundle,
        now=now,
    )
