"""`adapter`: published global adapters, their export as PEFT folders, and imported ones for runs to begin from."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.adapters import MANIFEST_FILE, check_file_digest
from common.cli.output import print_json, print_table
from common.durable import write_durably
from common.errors import InvalidArgument, NotFound, SignatureInvalid, StorageFailed
from common.identifiers import parse_digest, run_name
from common.manifest import SIGNATURE_FILE, read_manifest, verify_manifest
from common.methods.export import export_adapter, signed_file
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment, print_facts, short
from coordinator.services.admin_client import AdminClient, ExportHead

PART_SUFFIX = ".part"


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        if options.action == "import":
            return _import(client, options)
        return _list(client, options) if options.action == "list" else _export(client, options)


def _list(client: AdminClient, options: argparse.Namespace) -> Exit:
    rows = list(client.adapters(run_name(options.run.removeprefix("runs/"))))
    if options.json:
        print_json(rows)
        return Exit.OK
    print_table(
        ("round", "adapter", "state", "bytes", "held-out loss", "parent", "created"),
        [
            (
                row["round"],
                bare(row["name"]),
                row["state"],
                row["size_bytes"],
                row["heldout_loss"] or "-",
                short(row["parent_digest"]),
                moment(row["create_time"]),
            )
            for row in rows
        ],
    )
    return Exit.OK


def _import(client: AdminClient, options: argparse.Namespace) -> Exit:
    facts = client.import_adapter(options.file)
    if options.json:
        print_json(facts)
    else:
        print_facts(facts.items())
    return Exit.OK


def _export(client: AdminClient, options: argparse.Namespace) -> Exit:
    digest = _chosen(client, options)
    folder: Path = options.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file, head = _fetch(client, digest, folder)
    except OSError as error:
        raise StorageFailed(f"cannot write to {folder}: {error.strerror}") from error
    content = head.manifest.encode()
    run = read_manifest(content).run
    public_key = client.run(run_name(run))["plan"]["coordinator_public_key"]
    try:
        signature = bytes.fromhex(head.manifest_signature)
    except ValueError as error:
        raise SignatureInvalid("the manifest's signature is not hex; the adapter is not used") from error
    manifest = verify_manifest(content, signature, public_key=public_key, digest=digest)
    export_adapter(file, folder, method=manifest.method, spec=manifest.adapter, base_model_name=manifest.base_model)
    write_durably(folder / MANIFEST_FILE, content)
    write_durably(folder / SIGNATURE_FILE, head.manifest_signature.encode() + b"\n")
    facts = {
        "folder": str(folder),
        "digest": digest,
        "run": manifest.run,
        "round": manifest.round,
        "survivors": manifest.survivor_count,
        "base_model": manifest.base_model,
    }
    if options.json:
        print_json(facts)
    else:
        print_facts(facts.items())
    return Exit.OK


def _chosen(client: AdminClient, options: argparse.Namespace) -> str:
    if options.digest:
        return parse_digest(options.digest, field="--digest")
    if not options.run:
        raise InvalidArgument("name what to export with --run or --digest")
    digest = client.run(run_name(options.run.removeprefix("runs/")))["accepted_adapter_digest"]
    if not digest:
        raise NotFound(f"run {options.run} has no accepted adapter yet")
    return str(digest)


def _fetch(client: AdminClient, digest: str, folder: Path) -> tuple[Path, ExportHead]:
    """Bring the signed file, going on where an export before this one ended; what does not verify is taken away.

    It has its final name in the folder only once `export_adapter` has said which one that is.
    """
    file, part = signed_file(folder), folder / f".{digest}{PART_SUFFIX}"
    if file.exists():
        check_file_digest(file, digest)  # another adapter's folder is not written over
        return file, _head(client, digest, file.stat().st_size)
    with part.open("ab") as stream:
        messages = client.export_adapter(digest, offset=stream.tell())
        head = next(messages, None)
        for message in messages:
            if isinstance(message, bytes):
                stream.write(message)
        stream.flush()
        os.fsync(stream.fileno())
    if not isinstance(head, ExportHead):
        raise NotFound(f"the coordinator has sent no adapter {digest}")
    try:
        check_file_digest(part, digest)
    except Exception:
        part.unlink()
        raise
    return part, head


def _head(client: AdminClient, digest: str, size: int) -> ExportHead:
    head = next(client.export_adapter(digest, offset=size), None)
    if not isinstance(head, ExportHead):
        raise NotFound(f"the coordinator has sent no adapter {digest}")
    return head
