"""Replicas with their keys in one folder: the same federation, whatever lies in their own data folders."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.errors import AccordError, ConfigInvalid, NotFound
from coordinator import app
from coordinator.charters import CharterTerms, draft_charter
from coordinator.config import Config, parse_config
from coordinator.identity import load_identity
from coordinator.keystore import PkiFolder, ensure_signing_key
from coordinator.manifests import public_key_hex
from coordinator.rounds.model import ParticipantState
from coordinator.store.opening import open_store
from coordinator.store.schema import migrate
from tests.conformance import samples
from tests.rpc.coordinator import CONFIG, FEDERATION, SITES, running_coordinator

TEXT = CONFIG.replace("[participants]", '[keys]\nfolder = "keys"\n[participants]')


def replica(folder: Path, name: str) -> Config:
    return parse_config(TEXT.replace('data_folder = "data"', f'data_folder = "{name}"'), folder=folder)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The folder as a mounted secret: nothing can be written there."""
    folder = tmp_path / "keys"
    PkiFolder(folder).create_authority(FEDERATION, SystemClock())
    ensure_signing_key(folder / "signing-key.pem")
    return folder


def test_replicas_have_one_identity_and_a_listeners_certificate_each(tmp_path: Path, keys: Path) -> None:
    before = sorted((path.name, path.read_bytes()) for path in keys.iterdir())
    one, two = (load_identity(replica(tmp_path, name), SystemClock()) for name in ("one", "two"))
    assert public_key_hex(one.signing_key) == public_key_hex(two.signing_key)
    assert one.own is not None
    assert two.own is not None
    assert one.own.bundle() == two.own.bundle()
    assert one.participants_tls.certificate.read_bytes() != two.participants_tls.certificate.read_bytes()
    assert sorted((path.name, path.read_bytes()) for path in keys.iterdir()) == before


def test_a_replica_serves_with_nothing_but_the_shared_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    ensure_signing_key(tmp_path / "keys" / "signing-key.pem")
    with running_coordinator(tmp_path, TEXT) as running:
        assert running.config.pki_folder == tmp_path / "keys"
        assert not (running.config.data_folder / "signing-key.pem").exists()
        assert (running.config.data_folder / "pki" / "server.pem").exists()


def test_a_replica_without_the_signing_key_makes_none_of_its_own(tmp_path: Path, keys: Path) -> None:
    (keys / "signing-key.pem").unlink()
    with pytest.raises(NotFound, match="makes it, once for all"):
        load_identity(replica(tmp_path, "one"), SystemClock())
    assert not (keys / "signing-key.pem").exists()


def refusal(config: Config) -> AccordError:
    async def serve() -> None:
        stop = asyncio.Event()
        stop.set()  # Should it start, it ends, and nothing was refused.
        await app.serve(config, clock=SystemClock(), stop=stop, started=lambda _: None)

    with pytest.raises(AccordError) as refused:
        asyncio.run(serve())
    return refused.value


def test_a_replica_with_another_signing_key_than_the_charters_does_not_start(tmp_path: Path, keys: Path) -> None:
    config = replica(tmp_path, "one")
    config.data_folder.mkdir()
    migrate(config.database_url)
    with closing(open_store(config.database_url)) as store, store.write() as writer:
        charter = draft_charter(
            [
                replace(
                    samples.PARTICIPANT, name=name, state=ParticipantState.ACTIVE, identity_key_sha256=f"{place:064x}"
                )
                for place, name in enumerate(SITES)
            ],
            CharterTerms(),
            federation=FEDERATION,
            ca_certificates=[PkiFolder(keys).trust_bundle()],
            coordinator_public_key="ab" * 32,
        )
        writer.publish_charter(charter.to_bytes(), "c" * 64, at=SystemClock().now())
    refused = refusal(config)
    assert isinstance(refused, ConfigInvalid)
    assert "give every replica the same signing-key.pem" in refused.message
