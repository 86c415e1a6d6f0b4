"""`accord-participant adapters list|export`: the global adapters that this site has fetched."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from common.adapters import ADAPTER_FILE, MANIFEST_FILE, check_file_digest
from common.cli.output import print_json, print_note, print_table, print_text
from common.errors import AlreadyExists, InvalidArgument, NotFound, StorageFailed
from common.manifest import SIGNATURE_FILE, Manifest, read_manifest
from common.methods.export import export_adapter
from participant.cli.exits import Exit
from participant.config import load_unpinned_config

_SHOWN_DIGITS = 16
_EXPORTED = (MANIFEST_FILE, SIGNATURE_FILE)  # beside what `export_adapter` writes


@dataclass(frozen=True, slots=True)
class ShelvedAdapter:
    """An adapter folder with what its manifest says."""

    folder: Path
    manifest: Manifest


def execute(options: argparse.Namespace) -> Exit:
    shelved = shelved_adapters(load_unpinned_config(options.config).adapters_directory)
    return _export(options, shelved) if options.action == "export" else _list(options, shelved)


def _list(options: argparse.Namespace, shelved: tuple[ShelvedAdapter, ...]) -> Exit:
    if options.json:
        print_json({"adapters": [_json(adapter) for adapter in shelved]})
    elif shelved:
        print_table(
            ["digest", "run", "round", "base model", "sites", "made", "metrics"],
            [
                [
                    adapter.manifest.digest[:_SHOWN_DIGITS],
                    adapter.manifest.run,
                    str(adapter.manifest.round),
                    adapter.manifest.base_model,
                    str(adapter.manifest.survivor_count),
                    adapter.manifest.created_at,
                    ", ".join(f"{name} {value:.4g}" for name, value in sorted(adapter.manifest.metrics.items())),
                ]
                for adapter in shelved
            ],
        )
    else:
        print_text("no adapter so far: the daemon fetches them as rounds begin")
    return Exit.OK


def _export(options: argparse.Namespace, shelved: tuple[ShelvedAdapter, ...]) -> Exit:
    adapter = _chosen(options, shelved)
    # Checked when it was fetched; since then a disk may have failed, or somebody may have been at it.
    check_file_digest(adapter.folder / ADAPTER_FILE, adapter.manifest.digest)
    target: Path = options.folder
    try:
        target.mkdir(parents=True)
        export_adapter(
            adapter.folder / ADAPTER_FILE,
            target,
            method=adapter.manifest.method,
            spec=adapter.manifest.adapter,
            base_model_name=adapter.manifest.base_model,
        )
        for name in _EXPORTED:
            shutil.copyfile(adapter.folder / name, target / name)
    except FileExistsError as error:
        raise AlreadyExists(f"{target} exists; name a folder that does not") from error
    except OSError as error:
        raise StorageFailed(f"cannot copy the adapter to {target}: {error.strerror}") from error
    if options.json:
        print_json({**_json(adapter), "folder": str(target)})
    else:
        print_text(str(target))
        print_note(
            f"round {adapter.manifest.round} of run {adapter.manifest.run}, for {adapter.manifest.base_model}:\n"
            f'  PeftModel.from_pretrained(base_model, "{target}")'
        )
    return Exit.OK


def _chosen(options: argparse.Namespace, shelved: tuple[ShelvedAdapter, ...]) -> ShelvedAdapter:
    if options.digest is not None:
        found = [adapter for adapter in shelved if adapter.manifest.digest.startswith(options.digest.lower())]
        if len(found) > 1:
            raise InvalidArgument(f"{len(found)} adapters begin with {options.digest}; give more digits")
        wanted = f"whose digest begins with {options.digest}"
    else:
        found = [adapter for adapter in shelved if options.run in (None, adapter.manifest.run)][:1]
        wanted = f"of run {options.run}" if options.run else "at all"
    if not found:
        raise NotFound(f"this site has no adapter {wanted}; `accord-participant adapters list` shows what it has")
    return found[0]


def shelved_adapters(folder: Path) -> tuple[ShelvedAdapter, ...]:
    """By the time of their making, newest first. Folders that begin with a dot are still being fetched."""
    found = [
        ShelvedAdapter(manifest.parent, read_manifest(manifest.read_bytes()))
        for manifest in folder.glob(f"[!.]*/{MANIFEST_FILE}")
    ]
    return tuple(sorted(found, key=lambda adapter: (adapter.manifest.created_at, adapter.manifest.round), reverse=True))


def _json(adapter: ShelvedAdapter) -> dict[str, object]:
    manifest = adapter.manifest
    return {
        "digest": manifest.digest,
        "run": manifest.run,
        "round": manifest.round,
        "base_model": manifest.base_model,
        "base_model_digest": manifest.base_model_digest,
        "survivor_count": manifest.survivor_count,
        "metrics": manifest.metrics,
        "create_time": manifest.created_at,
        "folder": str(adapter.folder),
    }
