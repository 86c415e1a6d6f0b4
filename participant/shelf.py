"""Global adapters at this site: fetched by digest, verified with the plan's coordinator key, kept as they are summed.

Where that is a LoRA, its folder is a PEFT folder already; others become one when they are exported.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, MANIFEST_FILE, check_file_digest
from common.durable import move_durably, write_durably
from common.errors import DigestMismatch, StorageFailed, TooLarge
from common.manifest import SIGNATURE_FILE, Manifest, verify_manifest
from common.methods.export import is_plain
from common.plan import Plan
from participant.client import CoordinatorClient, PublishedAdapter

KEPT_ADAPTERS: Final = 4


class AdapterShelf:
    """One folder for each adapter, named by its digest. A folder is there only once all of it is verified."""

    def __init__(self, folder: Path, client: Callable[[], CoordinatorClient]) -> None:
        self._folder = folder
        self._client = client

    def path(self, digest: str) -> Path:
        return self._folder / digest

    def fetch(self, digest: str, plan: Plan, *, on_bytes: Callable[[int], None] = lambda count: None) -> Path:
        """The folder of an adapter, downloaded if it is not there; a download that broke off goes on.

        Raises DigestMismatch or SignatureInvalid for an adapter that is not what its name or its manifest says.
        """
        folder = self.path(digest)
        if folder.exists():
            return folder
        published = self._client().adapter(digest)
        manifest = verify_manifest(
            published.manifest, published.manifest_signature, public_key=plan.coordinator_public_key, digest=digest
        )
        _check_belongs(manifest, plan)
        arriving = self._arriving(digest)
        try:
            arriving.mkdir(parents=True, exist_ok=True)
            self._download(published, plan, arriving / ADAPTER_FILE, on_bytes)
            write_durably(arriving / MANIFEST_FILE, published.manifest)
            write_durably(arriving / SIGNATURE_FILE, published.manifest_signature.hex().encode())
            if is_plain(plan.adapter_method(), plan.base_model.layers):
                config = plan.adapter.peft_config_json(plan.base_model.name)
                write_durably(arriving / ADAPTER_CONFIG_FILE, config.encode())
            move_durably(arriving, folder)
        except OSError as error:
            raise StorageFailed(f"cannot keep adapter {digest[:12]} in {self._folder}: {error.strerror}") from error
        return folder

    def _download(self, published: PublishedAdapter, plan: Plan, path: Path, on_bytes: Callable[[int], None]) -> None:
        layout = plan.layout()
        expected = len(layout.header()) + 4 * layout.parameters
        if published.size_bytes != expected:
            raise TooLarge(
                f"adapter {published.digest[:12]} has {published.size_bytes} bytes, the plan says {expected}"
            )
        was_begun = path.exists() and path.stat().st_size > 0
        with path.open("ab") as file:
            for chunk in self._client().adapter_chunks(published.digest, offset=file.tell()):
                file.write(chunk)
                on_bytes(len(chunk))
                if file.tell() > expected:
                    break
            file.flush()
            os.fsync(file.fileno())
        try:
            check_file_digest(path, published.digest)
        except DigestMismatch:
            # Whatever this is, going on at its end would never make it right.
            path.unlink()
            if not was_begun:
                raise
            # What an earlier try had left behind may be what was wrong.
            self._download(published, plan, path, on_bytes)

    def prune(self, keep: frozenset[str]) -> None:
        """Delete all but the newest few adapters and those that are named, and downloads that were given up.

        A download that is not named is given up when another adapter has arrived since its last byte: whoever wanted
        this one would have gone on with it by then.
        """
        arrived = sorted(self._folder.glob("[!.]*"), key=lambda folder: folder.stat().st_mtime)
        old = [folder for folder in arrived if folder.name not in keep][:-KEPT_ADAPTERS]
        if arrived:
            last_arrival = arrived[-1].stat().st_mtime
            named = {self._arriving(digest) for digest in keep}
            parts = [part for part in self._folder.glob(".*.part") if part not in named]
            old.extend(part for part in parts if _written_at(part) < last_arrival)
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)

    def _arriving(self, digest: str) -> Path:
        return self._folder / f".{digest}.part"


def _written_at(part: Path) -> float:
    return max(path.stat().st_mtime for path in (part, *part.iterdir()))


def _check_belongs(manifest: Manifest, plan: Plan) -> None:
    if manifest.run != plan.run or manifest.base_model_digest != plan.base_model.digest:
        raise DigestMismatch(
            f"adapter {manifest.digest[:12]} is of run {manifest.run} on base model {manifest.base_model_digest[:12]}, "
            f"not of run {plan.run} on {plan.base_model.digest[:12]}"
        )
