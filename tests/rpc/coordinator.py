"""The whole coordinator on a loop of its own, with operators of every role: for tests of what operators do.

Real TLS, real SQLite, real listeners on free ports; nothing is replaced.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from accord.v1 import admin_pb2_grpc
from common.adapters import LinearLayer
from common.basemodel import BaseModel
from common.certificates import serial_text, spki_sha256
from common.clock import SystemClock
from common.identifiers import FederationId, OperatorId, OperatorIdentity, ParticipantId, Role
from common.rpc.tls import channel_credentials
from coordinator import app
from coordinator.addresses import Addresses
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY
from coordinator.config import Config, load_config
from coordinator.keystore import PkiFolder
from coordinator.pki import CertificateAuthority, key_pem
from coordinator.rounds.model import Participant, ParticipantState
from coordinator.store.interface import Store
from coordinator.store.opening import open_store

FEDERATION = FederationId("lab")
WAIT_SECONDS = 20.0
SITES = ("bank", "clinic", "newsroom")
LAYERS = tuple(
    LinearLayer(f"model.layers.{index}.self_attn.{name}", 24, 16) for index in range(2) for name in ("q_proj", "v_proj")
)
MODEL = BaseModel(
    name="made-up", digest="ab" * 32, architecture="MadeUpForCausalLM", layers=LAYERS, parameters=4096, dtype="F32"
)
CONFIG = """\
federation = "lab"
data_folder = "data"
[participants]
listen = "127.0.0.1:0"
[enrollment]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[health]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
[limits]
calls_per_second = 1000.0
calls_burst = 1000
stop_grace_seconds = 1.0
"""


@dataclass
class RunningCoordinator:
    """What a test may ask of it. `store` is a second connection to its database."""

    config: Config
    addresses: Addresses
    authority: CertificateAuthority
    store: Store
    _channels: dict[str, grpc.Channel] = field(default_factory=dict)

    def operator_folder(self, name: str, role: Role = Role.OPERATOR) -> Path:
        """A folder with an operator's certificate, key and CA."""
        folder = self.config.data_folder.parent / "people" / name
        if not folder.exists():
            identity = OperatorIdentity(FEDERATION, OperatorId(name), role)
            issued = self.authority.issue_operator(identity, now=SystemClock().now())
            folder.mkdir(parents=True)
            (folder / OPERATOR_KEY).write_bytes(issued.key_pem)
            (folder / OPERATOR_CERTIFICATE).write_text(issued.chain_pem)
            (folder / OPERATOR_CA).write_bytes(PkiFolder(self.config.pki_folder).authority_certificate.read_bytes())
        return folder

    def admin(self, name: str = "alice", role: Role = Role.OPERATOR) -> admin_pb2_grpc.AdminServiceStub:
        """AdminService as somebody calls it."""
        if name not in self._channels:
            folder = self.operator_folder(name, role)
            self._channels[name] = self.channel(
                self.addresses.admin, (folder / OPERATOR_CERTIFICATE).read_bytes(), (folder / OPERATOR_KEY).read_bytes()
            )
        return admin_pb2_grpc.AdminServiceStub(self._channels[name])

    def participant_channel(self, name: str, address: str) -> grpc.Channel:
        """A channel with a participant's certificate, which the CA issued without an enrolment."""
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self.authority.issue_participant(key.public_key(), ParticipantId(name), now=SystemClock().now())
        return self.channel(address, issued.chain_pem.encode(), key_pem(key))

    def channel(self, address: str, certificate: bytes, key: bytes) -> grpc.Channel:
        bundle = PkiFolder(self.config.pki_folder).authority_certificate.read_bytes()
        return grpc.secure_channel(
            address, channel_credentials(trust_bundle=bundle, certificate_chain=certificate, key=key)
        )

    def enroll(self, name: str) -> None:
        """A participant's row, as an enrolment leaves it."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = SystemClock().now()
        issued = self.authority.issue_participant(key.public_key(), ParticipantId(name), now=now)
        row = Participant(
            name=name,
            state=ParticipantState.ACTIVE,
            enrolled_at=now,
            identity_key_sha256=spki_sha256(key.public_key()),
            certificate_serial=serial_text(issued.certificate),
            certificate_expires_at=now + timedelta(days=30),
        )
        with self.store.write() as writer:
            writer.put_participant(row)


@contextmanager
def running_coordinator(folder: Path, text: str = CONFIG) -> Iterator[RunningCoordinator]:
    """A coordinator that serves until the block ends. `authority` is its own CA, made even where it is not used."""
    path = folder / "coordinator.toml"
    path.write_text(text)
    config = load_config(path)
    authority = PkiFolder(config.pki_folder).create_authority(FEDERATION, SystemClock())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    stop = asyncio.Event()
    started: concurrent.futures.Future[Addresses] = concurrent.futures.Future()
    served = asyncio.run_coroutine_threadsafe(
        app.serve(config, clock=SystemClock(), stop=stop, started=started.set_result), loop
    )

    def ended(done: concurrent.futures.Future[None]) -> None:
        if not started.done():
            started.set_exception(done.exception() or RuntimeError("the coordinator has ended before it served"))

    served.add_done_callback(ended)
    store: Store | None = None
    try:
        addresses = started.result(WAIT_SECONDS)
        store = open_store(config.database_url)
        yield RunningCoordinator(config, addresses, authority, store)
    finally:
        if store is not None:
            store.close()
        loop.call_soon_threadsafe(stop.set)
        served.result(WAIT_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_SECONDS)
        loop.close()
