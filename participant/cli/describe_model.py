"""`accord-participant describe-model`: what a base model is to a federation, for operators and policies."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from common.basemodel import describe
from common.cli.output import print_json, print_note, print_text
from common.errors import StorageFailed
from participant.cli.exits import Exit
from participant.config import load_unpinned_config
from participant.preflight.content import base_model_folder
from participant.toml_file import HUB_PREFIX
from participant.training.result import Progress


def execute(options: argparse.Namespace) -> Exit:
    """Print the description as JSON, or the digest alone."""
    folder = cached_folder(options)
    model = describe(folder, name=options.name or _usual_name(options.source), cache_folder=_cache_folder(options))
    if options.digest_only:
        print_text(model.digest)
    else:
        print_json(json.loads(model.to_json()))
    print_note(f"{model.name}: {model.parameters} parameters, {len(model.layers)} linear layers, in {folder}")
    return Exit.OK


def cached_folder(options: argparse.Namespace) -> Path:
    """The safetensors folder of the base model that `options.source` names, converted if need be."""
    cache = _cache_folder(options)
    source = options.source if options.source.startswith(HUB_PREFIX) else str(Path(options.source).expanduser())
    try:
        return base_model_folder(source, cache_folder=cache, on_progress=_tell)
    except OSError as error:
        raise StorageFailed(f"cannot use the cache {cache}: {error.strerror}; name another with --cache") from error


def _usual_name(source: str) -> str:
    """The name of the folder or file, or the hub's: what people call the model, not where a cache has put it."""
    if source.startswith(HUB_PREFIX):
        return source.removeprefix(HUB_PREFIX).partition("@")[0]
    path = Path(source).expanduser().resolve()
    return path.stem if path.is_file() else path.name


def _cache_folder(options: argparse.Namespace) -> Path:
    if options.cache is not None:
        return Path(options.cache)
    if options.config is not None:
        return load_unpinned_config(options.config).cache_directory
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accord"


def _tell(progress: Progress) -> None:
    print_note(f"{progress.phase.value} {progress.step}/{progress.total_steps} {progress.detail}".rstrip())
