"""Global adapters at this site: fetched by digest, verified with the plan's coordinator key, kept as they are summed.

Where that is a LoRA, its folder is a PEFT folder already; others become one when they are exported. Of an adapter whose
parent is here only what has moved since is fetched; the whole file's digest says whether the two fit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.adapters import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    FLOAT32_BYTES,
    MANIFEST_FILE,
    AdapterLayout,
    FlatFile,
    check_file_digest,
)
from common.durable import move_durably, write_durably
from common.errors import DigestMismatch, ShapeMismatch, StorageFailed, TooLarge
from common.identifiers import parse_digest
from common.log import get_logger
from common.manifest import SIGNATURE_FILE, Manifest, verify_manifest
from common.methods.export import is_plain
from common.methods.sent import Stretches
from common.plan import Plan
from common.sent import sent_vector
from participant.client import CoordinatorClient, PublishedAdapter

KEPT_ADAPTERS: Final = 4
KEPT_FINALS: Final = 8
_FINAL: Final = ".{}.final"
_MOVED_FILE: Final = "moved.f32"
_BLOCK: Final = 1 << 20

log = get_logger(__name__)


class AdapterShelf:
    """One folder for each adapter, named by its digest. A folder is there only once all of it is verified."""

    def __init__(self, folder: Path, client: Callable[[], CoordinatorClient]) -> None:
        self._folder = folder
        self._client = client

    def path(self, digest: str) -> Path:
        """Raises InvalidArgument for what is no digest: a name that others choose must not lead elsewhere."""
        return self._folder / parse_digest(digest, field="adapter")

    def fetch(self, digest: str, plan: Plan, *, on_bytes: Callable[[int], None] = lambda count: None) -> Path:
        """The folder of an adapter, downloaded if it is not there; a download that broke off goes on.

        Raises DigestMismatch or SignatureInvalid for an adapter that is not what its name or its manifest says,
        InvalidArgument for a name that is no digest.
        """
        folder = self.path(digest)
        if folder.exists():
            folder.touch()  # among the newest again, and so not the next to be pruned
            return folder
        published = self._client().adapter(digest)
        manifest = verify_manifest(
            published.manifest, published.manifest_signature, public_key=plan.coordinator_public_key, digest=digest
        )
        _check_belongs(manifest, plan)
        arriving = self._arriving(digest)
        try:
            arriving.mkdir(parents=True, exist_ok=True)
            if not self._fetch_moved(published, plan, manifest, on_bytes):
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

    def _fetch_moved(
        self, published: PublishedAdapter, plan: Plan, manifest: Manifest, on_bytes: Callable[[int], None]
    ) -> bool:
        """Make the adapter from its parent and what has moved since; False where that cannot be, or was not right."""
        parent = self.path(manifest.parent) / ADAPTER_FILE if manifest.parent else None
        arriving = self._arriving(published.digest)
        if parent is None or not parent.exists() or (arriving / ADAPTER_FILE).exists():
            return False
        sent, layout = sent_vector(plan, manifest.round).stretches, plan.layout()
        if sent.size == layout.parameters:
            return False
        part, made = arriving / _MOVED_FILE, arriving / f".{ADAPTER_FILE}"
        try:
            self._download_moved(published.digest, part, sent.size * FLOAT32_BYTES, on_bytes)
            _assemble(made, FlatFile(part, 0, sent.size), parent, layout, sent)
            check_file_digest(made, published.digest)
        except (DigestMismatch, ShapeMismatch) as error:
            log.warning("moved_tensors_do_not_fit", adapter=published.digest, message=error.message)
            made.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            return False
        made.rename(arriving / ADAPTER_FILE)
        part.unlink()
        return True

    def _download_moved(self, digest: str, path: Path, expected: int, on_bytes: Callable[[int], None]) -> None:
        with path.open("ab") as file:
            file.truncate(file.tell() - file.tell() % FLOAT32_BYTES)
            file.seek(0, os.SEEK_END)
            if file.tell() < expected:
                for chunk in self._client().adapter_chunks(digest, offset=file.tell(), moved_only=True):
                    file.write(chunk)
                    on_bytes(len(chunk))
                    if file.tell() > expected:
                        break

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

    def keep_final(self, digest: str) -> None:
        """A run has ended with this adapter: it stays until as many later runs have ended as are kept."""
        (self._folder / _FINAL.format(parse_digest(digest, field="adapter"))).touch()

    def prune(self, keep: frozenset[str]) -> None:
        """Delete all but the newest few adapters, the last runs' final ones and those that are named.

        Downloads that were given up go, too.

        A download that is not named is given up when another adapter has arrived since its last byte: whoever wanted
        this one would have gone on with it by then.
        """
        finals = sorted(self._folder.glob(_FINAL.format("*")), key=lambda mark: mark.stat().st_mtime)
        for mark in finals[:-KEPT_FINALS]:
            mark.unlink()
        keep |= {mark.name.strip(".").partition(".")[0] for mark in finals[-KEPT_FINALS:]}
        arrived = sorted(self._folder.glob("[!.]*"), key=lambda folder: folder.stat().st_mtime)
        old = [folder for folder in arrived if folder.name not in keep][:-KEPT_ADAPTERS]
        if arrived:
            last_arrival = arrived[-1].stat().st_mtime
            named = {f".{digest}.part" for digest in keep}
            parts = [part for part in self._folder.glob(".*.part") if part.name not in named]
            old.extend(part for part in parts if _written_at(part) < last_arrival)
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)

    def _arriving(self, digest: str) -> Path:
        return self._folder / f".{parse_digest(digest, field='adapter')}.part"


def _assemble(path: Path, moved: FlatFile, parent: Path, layout: AdapterLayout, sent: Stretches) -> None:
    """The parent's file with the sent elements in their places, durable. Raises ShapeMismatch for a wrong length."""
    FlatFile.open(parent, layout)
    shutil.copyfile(parent, path)
    data_start = len(layout.header())
    with path.open("r+b") as file:
        for start in range(0, sent.size, _BLOCK):
            values = moved.read(start, min(start + _BLOCK, sent.size))
            for part, place in sent.within(start, start + values.size):
                file.seek(data_start + place * FLOAT32_BYTES)
                file.write(values[part].data)
        file.flush()
        os.fsync(file.fileno())


def _written_at(part: Path) -> float:
    return max(path.stat().st_mtime for path in (part, *part.iterdir()))


def _check_belongs(manifest: Manifest, plan: Plan) -> None:
    if manifest.run != plan.run or manifest.base_model_digest != plan.base_model.digest:
        raise DigestMismatch(
            f"adapter {manifest.digest[:12]} is of run {manifest.run} on base model {manifest.base_model_digest[:12]}, "
            f"not of run {plan.run} on {plan.base_model.digest[:12]}"
        )
