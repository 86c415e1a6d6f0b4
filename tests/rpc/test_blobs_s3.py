"""A whole run with its blobs in a bucket, whose service dies in the middle and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rpc.federation import FEDERATION, Federation, federation_in
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS, seaweedfs_in

CREDENTIALS = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"


@pytest.fixture
def seaweedfs(tmp_path: Path) -> Iterator[SeaweedFS]:
    with seaweedfs_in(tmp_path / "seaweedfs") as server:
        yield server


@pytest.fixture
def federation(tmp_path: Path, seaweedfs: SeaweedFS) -> Iterator[Federation]:
    folder = tmp_path / "federation"
    folder.mkdir()
    (folder / "s3.ini").write_text(CREDENTIALS)
    section = (
        f'[blobs]\nurl = "{seaweedfs.url("lab")}"\nendpoint = "{seaweedfs.endpoint}"\ncredentials_file = "s3.ini"\n'
    )
    with federation_in(folder, limits=section) as made:
        yield made


def test_a_round_in_a_bucket_survives_its_service_and_its_coordinator(
    federation: Federation, seaweedfs: SeaweedFS
) -> None:
    names = federation.add_sites(3)
    last = federation.sites[names[-1]]
    last.line.cut(before="upload")
    federation.create_run(rounds=1)
    federation.turn_until(lambda: federation.round(1)["state"] == "collecting" and last.line.is_cut)
    acknowledged = federation.blobs("uploads/run/1")
    assert {key.split("/")[3] for key in acknowledged} == set(names[:-1])

    seaweedfs.kill()
    last.line.mend()
    federation.turn([last.name])
    waiting = federation.participations(1)
    assert waiting[last.name][0] != waiting[names[0]][0]
    federation.stop()
    seaweedfs.start()
    federation.start()
    federation.turn_until(lambda: federation.state() == "succeeded")

    errors, bound = federation.errors(1, names)
    assert errors.max() <= bound
    stored = federation.blobs("uploads/run/1")
    assert set(acknowledged) < set(stored)
    # What was acknowledged before is not asked for again: the coordinator that came back has taken the rest alone.
    page = seaweedfs.client().list_objects_v2(Bucket=BUCKET, Prefix="lab/uploads/run/")
    after = {found["Key"]: found["Size"] for found in page["Contents"] if found["Key"][4:] not in acknowledged}
    assert any(f"/1/{last.name}/" in key for key in after)
    assert federation.metric("accord_upload_bytes_total") == sum(after.values())
    owner = seaweedfs.client().get_object(Bucket=BUCKET, Key="lab/.federation")["Body"].read().decode()
    assert owner.split()[-1] == FEDERATION
    assert list((federation.folder / "data").glob("blobs*")) == []
