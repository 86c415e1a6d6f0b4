"""Where base models come from: a local safetensors folder, a GGUF file, or a hub name.

Every source ends as a local safetensors folder, which is what digests and training work on.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import BaseModelUnavailable
from participant.training.child import Reporter, StopRequest, run_child, write_atomically
from participant.training.convert import convert_gguf
from participant.training.result import RESULT_FILE, Phase, Progress

OnStage = Callable[[int, int, str], None]  # stage, of how many, what it does

_HUB_NAME: Final = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HUB_FILES: Final = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model")
_HUB_TIMEOUT_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class LocalFolder:
    path: Path


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path


@dataclass(frozen=True, slots=True)
class HubModel:
    """revision: a branch, tag or commit of the hub's repository."""

    repository: str
    revision: str


Source = LocalFolder | GgufFile | HubModel


def parse_source(text: str) -> Source:
    """Read what a configuration says: "hub:owner/name", "hub:owner/name@revision", "file.gguf", or a folder.

    Raises BaseModelUnavailable for a hub name that is none.
    """
    if text.startswith("hub:"):
        match = _HUB_NAME.fullmatch(text)
        if match is None:
            raise BaseModelUnavailable(f"{text!r} is no hub name; write hub:owner/name or hub:owner/name@revision")
        return HubModel(match["repository"], match["revision"] or "main")
    path = Path(text).expanduser()
    return GgufFile(path) if path.suffix.lower() == ".gguf" else LocalFolder(path)


def prepare(source: Source, *, cache_folder: Path, on_stage: OnStage) -> Path:
    """The local safetensors folder of a source; converts or downloads what is not there yet.

    Safe to be killed and called again, and by several processes at once. Raises BaseModelUnavailable.
    """
    if isinstance(source, GgufFile):
        return convert_gguf(source.path, cache_folder=cache_folder, on_stage=on_stage)
    folder = source.path if isinstance(source, LocalFolder) else _fetch(source, cache_folder, on_stage)
    _check_folder(folder)
    return folder.resolve()


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BaseModelUnavailable(f"the base model folder {folder} does not exist")
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise BaseModelUnavailable(f"the base model folder {folder} lacks {', '.join(missing)}")


def _fetch(source: HubModel, cache_folder: Path, on_stage: OnStage) -> Path:
    """A snapshot of a hub's repository; asks the network only for what is not in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cache = cache_folder / "hub"
    on_stage(1, 2, "look in the local cache")
    try:
        folder = Path(
            snapshot_download(
                source.repository,
                revision=source.revision,
                cache_dir=cache,
                allow_patterns=list(_HUB_FILES),
                local_files_only=True,
            )
        )
        _check_folder(folder)
        return folder
    except (LocalEntryNotFoundError, BaseModelUnavailable):
        on_stage(2, 2, f"download {source.repository}")
    try:
        return Path(
            snapshot_download(
                source.repository,
                revision=source.revision,
                cache_dir=cache,
                allow_patterns=list(_HUB_FILES),
                etag_timeout=_HUB_TIMEOUT_SECONDS,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, _transport_error(), OSError) as error:
        raise BaseModelUnavailable(
            f"cannot fetch {source.repository} (revision {source.revision}) from the hub: {_first_line(error)}. "
            f"On a machine with access run `hf download {source.repository} --revision {source.revision} "
            "--local-dir FOLDER`, copy FOLDER to this site and name the folder as the base model"
        ) from error


def _transport_error() -> type[Exception]:
    """The error of the HTTP library that this version of huggingface_hub speaks with; a download may end in it."""
    module = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
    error = module.HTTPError
    assert isinstance(error, type) and issubclass(error, Exception)  # noqa: S101, PT018  (for mypy)
    return error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _main(text: str, cache_folder: Path, folder: Path) -> int:
    """The child of `process.prepare_base_model`: leaves the model's folder as JSON text in `folder/result.json`."""

    def work(report: Reporter, stop: StopRequest) -> None:
        def on_stage(stage: int, stages: int, detail: str) -> None:
            report(Progress(phase=Phase.PREPARE, step=stage, total_steps=stages, detail=detail))

        prepared = prepare(parse_source(text), cache_folder=cache_folder, on_stage=on_stage)
        write_atomically(folder / RESULT_FILE, json.dumps(str(prepared)))

    return run_child(work, folder=folder)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
