"""`accord-participant initial-adapter`: the first adapter of a run, with bases from the base model's own weights.

The coordinator has no base model, so somebody who has it makes the adapter, and the operator imports the file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from common.adapters import AdapterSpec, file_digest
from common.basemodel import LinearWeights, describe
from common.cli.output import print_json, print_note, print_text
from common.durable import move_durably
from common.errors import AlreadyExists, InvalidArgument, StorageFailed
from common.methods import Method, adapter_method
from common.methods.from_base import FromBase, initial_from_base
from participant.cli.describe_model import cached_folder
from participant.cli.exits import Exit

# Of no meaning here: the layout does not depend on it, and the run's plan has its own.
_ANY_ALPHA: Final = 1.0


def execute(options: argparse.Namespace) -> Exit:
    target: Path = options.file
    if target.exists():
        raise AlreadyExists(f"{target} exists; name a file that does not")
    folder = cached_folder(options)
    layers = describe(folder).layers
    modules = options.modules.split(",") if options.modules else {layer.name.rpartition(".")[2] for layer in layers}
    if options.rank < 1:
        raise InvalidArgument(f"--rank {options.rank} must be at least 1")
    spec = AdapterSpec(options.rank, _ANY_ALPHA, tuple(sorted(name.strip() for name in modules)))
    method = adapter_method(Method(name=options.method, heads=options.heads), spec)
    if not isinstance(method, FromBase):
        raise InvalidArgument(f"--method {options.method} takes no bases from a base model")
    weights = LinearWeights(folder)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(method.layout(layers).header())
            for _, values in initial_from_base(method, layers, weights.read, seed=options.seed):
                file.write(values.astype("<f4", copy=False).data)
            file.flush()
            os.fsync(file.fileno())
        move_durably(partial, target)
    except OSError as error:
        raise StorageFailed(f"cannot write {target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    digest = file_digest(target)
    if options.json:
        print_json({"file": str(target), "digest": digest, "size_bytes": target.stat().st_size})
    else:
        print_text(digest)
        print_note(f"for the federation's operator: accord-coordinator adapter import {target}")
    return Exit.OK
