"""What is special to blobs in a bucket: what its service refuses, large files' parts, credentials, and whose it is."""

from __future__ import annotations

import io
import logging
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from structlog.testing import capture_logs

from common.errors import (
    ConfigInvalid,
    InvalidArgument,
    NotFound,
    StorageDenied,
    StorageFailed,
    StorageFull,
    StorageMissing,
    StorageUnreachable,
)
from coordinator.store import s3_parts
from coordinator.store.blobs_s3 import S3BlobStore
from coordinator.store.opening import check_blobs, open_blobs
from coordinator.store.s3_errors import refusal
from coordinator.store.s3_settings import S3Place, S3Settings
from tests.conformance.conftest import ONE_CALL, PART
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

SECRET_FILE = """[default]
aws_access_key_id = {access}
aws_secret_access_key = {secret}
"""

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def blobs(url) -> S3BlobStore:
    return S3BlobStore(url, S3Settings())


def credentials(folder: Path, *, access: str = ACCESS_KEY, secret: str = SECRET_KEY) -> S3Settings:
    path = folder / "s3.ini"
    path.write_text(SECRET_FILE.format(access=access, secret=secret))
    return S3Settings(credentials_file=path)


def objects(server: SeaweedFS, url: str) -> list[str]:
    page = server.client().list_objects_v2(Bucket=BUCKET, Prefix=S3Place.parse(url).prefix + "/")
    return [found["Key"] for found in page.get("Contents", ())]


def open_uploads(server: SeaweedFS, url: str) -> list[dict]:
    return (
        server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=S3Place.parse(url).prefix + "/").get("Uploads", [])
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"secret": "wrong-secret-0123"}, "does not belong to the access key"),
        ({"access": "NOBODY"}, "does not know this access key"),
    ],
)
def test_wrong_keys_are_said_to_be_wrong_and_never_shown(url, tmp_path, monkeypatch, pair, said):
    settings = credentials(tmp_path, **pair)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)  # The file outranks what else there is.
    blobs = S3BlobStore(url, settings)
    for use in (lambda: blobs.put("key", b"x"), lambda: blobs.read("key"), lambda: list(blobs.keys("")), blobs.probe):
        with pytest.raises(StorageDenied, match=said) as refused:
            use()
        assert "wrong-secret" not in str(refused.value)
    assert "wrong-secret" not in repr(settings) + repr(blobs)


def test_a_bucket_that_is_missing_is_said_to_be_missing_by_every_call(bucket, monkeypatch, tmp_path):
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), bucket.admin_pair, strict=True):
        monkeypatch.setenv(name, value)  # The other pair may not even ask.
    blobs = S3BlobStore("s3://nobodys-bucket/x", S3Settings())
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for use in (
        lambda: blobs.put("key", b"x"),
        lambda: blobs.put_file("key", file),
        lambda: blobs.read("key"),
        lambda: blobs.fetch("key", tmp_path / "out"),
        lambda: blobs.size("key"),
        lambda: blobs.exists("key"),
        lambda: list(blobs.keys("a")),
        lambda: blobs.delete("a"),
        lambda: S3BlobStore("s3://nobodys-bucket/x", S3Settings(), owner="lab"),
    ):
        with pytest.raises(StorageMissing, match=r"create it, or correct blobs\.url"):
            use()


def test_what_the_credentials_may_not_do_is_a_denial(bucket):
    with pytest.raises(StorageDenied, match="lists the rights"):
        S3BlobStore("s3://another-bucket/x", S3Settings()).put("key", b"x")


def test_a_service_that_does_not_answer_is_unreachable(url, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr("coordinator.store.s3_connection.ATTEMPTS", 1)
        blobs = S3BlobStore(url, S3Settings(endpoint=f"http://127.0.0.1:{nobody.getsockname()[1]}"))
        with pytest.raises(StorageUnreachable, match=r"cannot reach http://127.0.0.1:\d+ .*blobs.endpoint"):
            blobs.put("key", b"x")


def test_a_service_without_tls_behind_https_is_said_to_fail_in_tls(url, bucket, monkeypatch):
    monkeypatch.setattr("coordinator.store.s3_connection.ATTEMPTS", 1)
    blobs = S3BlobStore(url, S3Settings(endpoint=bucket.endpoint.replace("http://", "https://")))
    with pytest.raises(StorageUnreachable, match=r"TLS with https://.*blobs.ca_file"):
        blobs.put("key", b"x")


def test_a_clock_that_is_wrong_is_named(url, blobs, monkeypatch):
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(StorageDenied, match="synchronise this host's"):
        blobs.put("key", b"x")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("QuotaExceeded", 403, StorageFull),
        ("XMinioStorageFull", 507, StorageFull),
        ("Whatever", 507, StorageFull),
        ("SlowDown", 503, StorageUnreachable),
        ("ExpiredToken", 400, StorageDenied),
        ("NewAndUnknown", 400, StorageFailed),
    ],
)
def test_codes_of_other_services_are_understood(code, status, kind):
    answer = {"Error": {"Code": code, "Message": "its own words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = refusal(ClientError(answer, "PutObject"), "s3://bucket")
    assert type(error) is kind
    assert code in error.message


# --- large files ------------------------------------------------------------------------------------------------------


def test_a_large_file_goes_up_in_parts_and_comes_back_whole(url, bucket, blobs, tmp_path):
    file = tmp_path / "adapter"
    content = os.urandom(ONE_CALL + 12_345)
    file.write_bytes(content)
    blobs.put("adapters/a", b"what was there")
    blobs.put_file("adapters/a", file)
    blobs.fetch("adapters/a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert blobs.read("adapters/a", PART - 5, 10) == content[PART - 5 : PART + 5]
    assert open_uploads(bucket, url) == []


def test_parts_of_a_file_with_other_bytes_are_not_taken_over(url, bucket, blobs, tmp_path):
    key = S3Place.parse(url).key("adapters/a")
    client = bucket.client()
    begun = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    client.upload_part(Bucket=BUCKET, Key=key, UploadId=begun, PartNumber=1, Body=bytes(PART))
    file = tmp_path / "adapter"
    file.write_bytes(os.urandom(3 * PART))
    blobs.put_file("adapters/a", file)
    assert blobs.read("adapters/a") == file.read_bytes()


def test_an_upload_that_another_process_has_completed_meanwhile_is_begun_anew(url, blobs, tmp_path, monkeypatch):
    file = tmp_path / "adapter"
    file.write_bytes(os.urandom(3 * PART))
    completed: list[object] = []

    def overtaken(connection, upload, number, part, digest, send=s3_parts._send):
        if not completed:
            completed.append(upload)
            connection.call(
                lambda s3: s3.abort_multipart_upload(Bucket=BUCKET, Key=upload.key, UploadId=upload.identifier)
            )
        return send(connection, upload, number, part, digest)

    monkeypatch.setattr(s3_parts, "_send", overtaken)
    blobs.put_file("adapters/a", file)
    assert blobs.read("adapters/a") == file.read_bytes()


def test_parts_are_large_enough_for_the_largest_file():
    for size in (1, 10 << 30, 160 << 30, 5 << 40):
        part = s3_parts.part_bytes(size)
        assert -(-size // part) <= s3_parts.MOST_PARTS
        assert part >= PART
        assert part % (1 << 20) == 0


def test_what_nobody_goes_on_with_is_thrown_away_after_a_day(url, bucket, blobs):
    client = bucket.client()
    for name in ("old", "fresh"):
        client.create_multipart_upload(Bucket=BUCKET, Key=S3Place.parse(url).key(name))
    s3_parts.abort_abandoned(blobs._connection, now=datetime.now(UTC) + timedelta(hours=23))
    assert len(open_uploads(bucket, url)) == 2
    s3_parts.abort_abandoned(blobs._connection, now=datetime.now(UTC) + timedelta(hours=25))
    assert open_uploads(bucket, url) == []


def test_a_body_can_be_read_in_any_steps_and_again():
    pieces: list[bytes | memoryview] = [b"first ", memoryview(b"second "), b"", b"third"]
    whole = b"first second third"
    body = s3_parts.Body(s3_parts.Part.whole(s3_parts.Pieces(pieces)))
    assert body.read() == whole
    assert body.seek(0) == 0
    assert b"".join(iter(lambda: body.read(4), b"")) == whole
    stretch = s3_parts.Body(s3_parts.Part(s3_parts.Pieces(pieces), 4, 6))
    assert (len(stretch), stretch.read(), stretch.seek(0, io.SEEK_END), stretch.tell()) == (6, whole[4:10], 6, 6)


# --- whose bucket, and with which keys --------------------------------------------------------------------------------


def test_a_prefix_belongs_to_the_federation_that_opened_it_first(url, bucket):
    first = S3BlobStore(url, S3Settings(), owner="lab")
    first.put("uploads/run/1", b"lab's")
    with pytest.raises(ConfigInvalid, match="of federation 'lab', this one is 'other': give each a prefix"):
        S3BlobStore(url, S3Settings(), owner="other")
    again = S3BlobStore(url, S3Settings(), owner="lab")
    assert list(again.keys("")) == ["uploads/run/1"]
    S3BlobStore(f"{url}/beside", S3Settings(), owner="other")


def test_of_many_that_open_an_empty_prefix_at_once_one_has_it(url, bucket):
    outcomes = []

    def claim(owner):
        try:
            S3BlobStore(url, S3Settings(), owner=owner)
            outcomes.append(owner)
        except ConfigInvalid as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=claim, args=(f"federation-{index}",)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [found for found in outcomes if found.startswith("federation-")]
    assert len(winners) == 1
    assert all(f"of federation '{winners[0]}'" in found for found in outcomes if found != winners[0])


def test_new_keys_in_the_file_are_used_without_a_restart(url, tmp_path):
    settings = credentials(tmp_path, secret="the-old-secret")
    blobs = S3BlobStore(url, settings)
    with pytest.raises(StorageDenied):
        blobs.put("key", b"x")
    assert settings.credentials_file is not None
    settings.credentials_file.write_text("[default]\naws_access_key_id = half")
    with pytest.raises(StorageDenied, match="does not belong"):
        blobs.put("key", b"x")
    credentials(tmp_path)
    blobs.put("key", b"x")
    assert blobs.read("key") == b"x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("[other]\naws_access_key_id = a\naws_secret_access_key = tell-nobody", "has no section"),
        ("[default]\naws_access_key_id = a", "no usable credentials|is not an AWS|has no section"),
        ("aws_secret_access_key = tell-nobody", "is not an AWS credentials file"),
    ],
)
def test_a_credentials_file_that_is_none_is_said_without_its_content(url, tmp_path, text, said):
    path = tmp_path / "s3.ini"
    if text is not None:
        path.write_text(text)
    with pytest.raises((ConfigInvalid, StorageDenied), match=said) as refused:
        S3BlobStore(url, S3Settings(credentials_file=path))
    told = []
    error: BaseException | None = refused.value
    while error is not None:
        told.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "tell-nobody" not in " ".join(told)


def test_no_credentials_at_all_is_said(url, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(StorageDenied, match=r"name blobs\.credentials_file"):
        S3BlobStore(url, S3Settings()).put("key", b"x")


def test_nothing_that_is_logged_has_a_secret_or_the_headers_of_calls(url, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore").setLevel(logging.NOTSET)
    blobs = S3BlobStore(url, credentials(tmp_path), owner="lab")
    blobs.put("key", b"x")
    assert blobs.read("key") == b"x"
    assert SECRET_KEY not in caplog.text
    assert "uthorization" not in caplog.text


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("s3://", "bucket's name"),
        ("s3://Upper", "bucket's name"),
        ("s3://KEY:tell-nobody@bucket/x", "keys belong into"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket/../x", "prefix"),
        ("s3://bucket/x?region=eu", "prefix"),
        (f"s3://bucket/{'x' * 190}/{'x' * 190}", "prefix"),
    ],
)
def test_urls_that_name_no_bucket_are_refused(bad, said):
    with pytest.raises(ConfigInvalid, match=said) as refused:
        open_blobs(bad)
    assert "tell-nobody" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["s3.example.org", "ftp://x", "https://KEY:tell-nobody@host", "http://"])
def test_endpoints_that_are_none_are_refused(endpoint):
    with pytest.raises(ConfigInvalid, match=r"blobs\.endpoint") as refused:
        S3BlobStore("s3://bucket", S3Settings(endpoint=endpoint))
    assert "tell-nobody" not in str(refused.value)


def test_a_ca_file_that_is_missing_is_said_before_the_first_call(url, tmp_path):
    with pytest.raises(ConfigInvalid, match=r"blobs.ca_file: cannot read .*none.pem"):
        S3BlobStore(url, S3Settings(ca_file=tmp_path / "none.pem"))


def test_a_line_without_tls_to_another_host_is_warned_of():
    with capture_logs() as events:
        S3BlobStore("s3://bucket", S3Settings(endpoint="http://s3.example.org"))
        S3BlobStore("s3://bucket", S3Settings(endpoint="http://127.0.0.1:1"))
        S3BlobStore("s3://bucket", S3Settings(endpoint="https://s3.example.org"))
    assert [event["endpoint"] for event in events if event["event"] == "blobs_without_tls"] == ["http://s3.example.org"]


def test_the_check_leaves_nothing_behind(url, bucket):
    check_blobs(url, S3Settings())
    assert objects(bucket, url) == []


def test_a_key_that_is_too_long_with_its_prefix_is_refused(bucket):
    blobs = S3BlobStore(bucket.url("p" * 100), S3Settings())
    key = "/".join(["k" * 190] * 5)
    with pytest.raises(InvalidArgument, match="with the prefix"):
        blobs.put(key, b"x")
    with pytest.raises(NotFound):
        blobs.read("k")
