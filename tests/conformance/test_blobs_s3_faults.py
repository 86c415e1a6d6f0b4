"""Blobs in a bucket behind a line that changes and loses bytes, and in a service that dies or is full."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from common.errors import StorageFailed, StorageUnreachable
from coordinator.store import s3_parts
from coordinator.store.blobs_s3 import S3BlobStore
from coordinator.store.s3_settings import S3Settings
from tests.conformance.conftest import ONE_CALL, PART
from tests.seaweedfs import BUCKET, seaweedfs_in

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def blobs(url) -> S3BlobStore:
    return S3BlobStore(url, S3Settings())


# --- a line that is not to be trusted ---------------------------------------------------------------------------------


def test_a_byte_that_changes_on_its_way_is_refused_and_not_stored(url, bucket, tmp_path):
    def change(sent: bytes) -> bytes:
        return sent.replace(b"the update's bytes", b"the uqdate's bytes")

    with line(bucket.port, change) as port:
        blobs = S3BlobStore(url, S3Settings(endpoint=f"http://127.0.0.1:{port}"))
        with pytest.raises(StorageFailed, match="changed on their way"):
            blobs.put("key", b"the update's bytes")
        blobs.put("other", b"others")
        file = tmp_path / "large"
        file.write_bytes(bytes(ONE_CALL) + b"the update's bytes")
        with pytest.raises(StorageFailed, match="changed on their way"):
            blobs.put_file("large", file)
    assert list(S3BlobStore(url, S3Settings()).keys("")) == ["other"]


def test_a_reader_goes_on_where_its_line_broke(url, bucket, blobs, tmp_path):
    content = os.urandom(3 << 20)
    blobs.put("key", content)
    cuts = iter((100_000, 1_500_000))
    with line(bucket.port, answers=lambda: next(cuts, None)) as port:
        far = S3BlobStore(url, S3Settings(endpoint=f"http://127.0.0.1:{port}"))
        assert far.read("key", 10) == content[10:]
        assert next(cuts, None) is None
        far.fetch("key", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == content


def test_a_reader_whose_blob_is_replaced_while_its_line_breaks_gets_no_mixture(url, bucket, blobs, tmp_path):
    old, new = bytes(2 << 20), bytes([1]) * (2 << 20)
    for read in (lambda far: far.read("key"), lambda far: far.fetch("key", tmp_path / "file")):
        blobs.put("key", old)
        connections: list[int] = []

        def answers(connections=connections):
            connections.append(1)
            if len(connections) == 1:
                return 500_000
            blobs.put("key", new)
            return None

        with line(bucket.port, answers=answers) as port:
            found = read(S3BlobStore(url, S3Settings(endpoint=f"http://127.0.0.1:{port}")))
        assert len(connections) > 1
        assert (found or (tmp_path / "file").read_bytes()) == new


def test_a_ca_of_ones_own_is_trusted_if_it_is_named_and_else_not(url, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("coordinator.store.s3_connection.ATTEMPTS", 1)
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s3")])
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca, pem = tmp_path / "ca.pem", serialization.Encoding.PEM
    ca.write_bytes(certificate.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(ca, tmp_path / "key.pem")
    with line(bucket.port, tls=tls) as port:
        trusting = S3BlobStore(url, S3Settings(endpoint=f"https://127.0.0.1:{port}", ca_file=ca))
        trusting.put("key", b"x")
        assert trusting.read("key") == b"x"
        other = S3BlobStore(url, S3Settings(endpoint=f"https://127.0.0.1:{port}"))
        with pytest.raises(StorageUnreachable, match=r"TLS .* failed .*blobs\.ca_file"):
            other.put("key", b"y")


# --- a service that dies, or is full ----------------------------------------------------------------------------------


def test_what_was_acknowledged_outlives_a_kill_and_an_upload_goes_on_at_its_last_part(tmp_path, monkeypatch):
    with seaweedfs_in(tmp_path / "server") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = server.url("fed")
        blobs = S3BlobStore(url, S3Settings())
        blobs.put("uploads/1", b"acknowledged")
        file = tmp_path / "adapter"
        file.write_bytes(os.urandom(3 * PART))
        sent = 0

        def dying(connection, upload, number, part, digest, send=s3_parts._send):
            nonlocal sent
            if number == 3:
                server.kill()
            etag = send(connection, upload, number, part, digest)
            sent += 1
            return etag

        with monkeypatch.context() as patched:
            patched.setattr(s3_parts, "_send", dying)
            patched.setattr("coordinator.store.s3_connection.ATTEMPTS", 1)
            with pytest.raises(StorageUnreachable):
                S3BlobStore(url, S3Settings()).put_file("adapters/a", file)
        assert sent == 2
        server.start()
        assert blobs.read("uploads/1") == b"acknowledged"
        assert not blobs.exists("adapters/a")
        with capture_logs() as events:  # Of another process, which knows nothing but the file and the key.
            S3BlobStore(url, S3Settings()).put_file("adapters/a", file)
        assert [event["durable_bytes"] for event in events if event["event"] == "upload_gone_on_with"] == [2 * PART]
        assert blobs.read("adapters/a") == file.read_bytes()
        assert server.client().list_multipart_uploads(Bucket=BUCKET, Prefix="fed/").get("Uploads", []) == []


def test_a_full_service_acknowledges_nothing_that_it_does_not_keep(tmp_path, monkeypatch):
    with seaweedfs_in(tmp_path / "server", most_volumes=2, volume_mebibytes=1) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("coordinator.store.s3_connection.ATTEMPTS", 1)
        blobs = S3BlobStore(server.url("fed"), S3Settings())
        kept: list[int] = []

        def fill() -> None:
            for number in range(200):
                blobs.put(f"uploads/{number}", bytes([number]) * 500_000)
                kept.append(number)

        with pytest.raises(StorageFailed, match="full or missing volumes"):
            fill()
        assert kept
        assert sorted(blobs.keys("")) == sorted(f"uploads/{number}" for number in kept)
        for number in kept:
            assert blobs.read(f"uploads/{number}") == bytes([number]) * 500_000


# --- a line between -------------------------------------------------------------------------------------------------


@contextmanager
def line(to_port, change=lambda sent: sent, *, answers=lambda: None, tls=None):
    """A port that leads to another one. change: what is done to what is sent. answers: after how many bytes the next
    connection's answer breaks off, or None. tls: what the port itself speaks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def pump(source, target, alter, most):
            with source, target:
                try:
                    while piece := source.recv(1 << 16):
                        if most is not None and len(piece) > most:
                            return
                        most = None if most is None else most - len(piece)
                        target.sendall(alter(piece))
                except OSError:
                    return
                finally:
                    for end in (source, target):
                        with suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)

        def accept():
            while True:
                try:
                    near, _ = listening.accept()
                except OSError:
                    return
                if tls is not None:
                    try:
                        near = tls.wrap_socket(near, server_side=True)
                    except OSError:
                        continue
                far, most = socket.create_connection(("127.0.0.1", to_port)), answers()
                threading.Thread(target=pump, args=(near, far, change, None), daemon=True).start()
                threading.Thread(target=pump, args=(far, near, lambda got: got, most), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
