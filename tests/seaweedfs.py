"""A real S3 service for tests: SeaweedFS on 127.0.0.1, which ends with the test, and can be killed before.

Knows nothing of what is stored. Two keys: the administrator's, who makes the bucket, and one that may use that alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from demo.federation import leashed
from demo.ports import free_ports
from tests.programs import tool

BUCKET: Final = "accord-blobs"
ACCESS_KEY: Final = "ACCORDKEY"
SECRET_KEY: Final = "accord-secret-of-the-tests"
_ADMIN: Final = ("ADMINKEY", "admin-secret-of-the-tests")
_START_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05
_PORTS: Final = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
_OFF: Final = (
    "s3.port.iceberg=0",
    "s3.port.lance=0",
    "s3.iam=false",
    "s3.autoCreateBucket=false",
    "master.telemetry=false",
    "master.electionTimeout=1s",
)


class SeaweedFS:
    """One server with a folder of its own. most_volumes and volume_mebibytes: how much it takes in all."""

    def __init__(self, folder: Path, *, most_volumes: int = 40, volume_mebibytes: int = 1024) -> None:
        self.folder = folder
        self._limits = (f"-volume.max={most_volumes}", f"-master.volumeSizeLimitMB={volume_mebibytes}")
        self._all_ports = free_ports(len(_PORTS) + 2)
        *ports, self.port, grpc_port = self._all_ports
        self._ports = [f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=True)]
        self._ports += [f"-s3.port={self.port}", f"-s3.port.grpc={grpc_port}"]
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data").mkdir(exist_ok=True)
        identities = [
            {"name": "admin", "credentials": [_pair(*_ADMIN)], "actions": ["Admin", "Read", "Write", "List"]},
            {
                "name": "accord",
                "credentials": [_pair(ACCESS_KEY, SECRET_KEY)],
                "actions": [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")],
            },
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}), encoding="utf-8")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_pair(self) -> tuple[str, str]:
        """Keys that may do everything, to whom a missing bucket is missing and not forbidden."""
        return _ADMIN

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What leads any S3 client to this server."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start, or start again; returns when the bucket is there."""
        weed = str(tool("seaweedfs", "weed"))
        server = [
            weed,
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
        ]
        options = [*self._ports, *(f"-{option}" for option in _OFF), f"-s3.config={self.folder / 's3.json'}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                leashed([*server, *options, *self._limits]),
                cwd=self.folder,
                env={**os.environ, "GOMEMLIMIT": "256MiB", "GOMAXPROCS": "2"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        give_up_at = time.monotonic() + _START_SECONDS
        while not self._has_bucket():
            assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2000:]
            assert time.monotonic() < give_up_at, (self.folder / "log").read_text(errors="replace")[-2000:]
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """As a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            for port in self._all_ports:
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # its own choice
                    left.unlink(missing_ok=True)

    def client(self, *, bucket_only: bool = True):
        """The client library's own client, for what tests do behind the product's back."""
        access, secret = (ACCESS_KEY, SECRET_KEY) if bucket_only else _ADMIN
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def _has_bucket(self) -> bool:
        """Made, read and written to: a server that has just started knows no volumes, or not all, for a moment."""
        admin = self.client(bucket_only=False)
        try:
            if BUCKET not in [bucket["Name"] for bucket in admin.list_buckets()["Buckets"]]:
                admin.create_bucket(Bucket=BUCKET)
            for found in admin.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
                admin.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read()
            admin.put_object(Bucket=BUCKET, Key=".ready", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        return True


def _pair(access_key: str, secret_key: str) -> dict[str, str]:
    return {"accessKey": access_key, "secretKey": secret_key}


@contextmanager
def seaweedfs_in(folder: Path, *, most_volumes: int = 40, volume_mebibytes: int = 1024) -> Iterator[SeaweedFS]:
    server = SeaweedFS(folder, most_volumes=most_volumes, volume_mebibytes=volume_mebibytes)
    server.start()
    try:
        yield server
    finally:
        server.kill()
