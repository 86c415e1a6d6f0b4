"""The base models that this site offers: made ready once (converted, downloaded), described, and found by digest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.basemodel import BaseModel, describe
from common.errors import BaseModelMismatch, BaseModelUnavailable
from common.log import get_logger
from participant.training.process import prepare_base_model
from participant.training.result import Progress

log = get_logger(__name__)


class BaseModels(Protocol):
    """What the daemon needs of this site's base models."""

    def own(self) -> tuple[BaseModel, ...]:
        """Their descriptions. Raises BaseModelUnavailable or BaseModelMismatch."""
        ...

    def folder(self, digest: str) -> Path:
        """Where the model of that digest lies."""
        ...


@dataclass(frozen=True, slots=True)
class BaseModelSource:
    """Where a model comes from: a folder, a GGUF file, or hub:owner/name; `digest` is what it must come to, if set."""

    source: str
    digest: str | None = None


class ConfiguredBaseModels:
    """The models of participant.toml. The first look makes them ready, which takes a while for a GGUF file.

    on_step: told whenever that gets on.
    """

    def __init__(
        self,
        sources: tuple[BaseModelSource, ...],
        *,
        cache: Path,
        stop: threading.Event,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._sources = sources
        self._cache = cache
        self._stop = stop
        self._on_step = on_step
        self._found: dict[str, tuple[BaseModel, Path]] = {}

    def own(self) -> tuple[BaseModel, ...]:
        if not self._found:
            self._found = {model.digest: (model, folder) for model, folder in map(self._ready, self._sources)}
        return tuple(model for model, _ in self._found.values())

    def folder(self, digest: str) -> Path:
        self.own()
        try:
            return self._found[digest][1]
        except KeyError:
            raise BaseModelUnavailable(f"this site has no base model of digest {digest}") from None

    def _ready(self, source: BaseModelSource) -> tuple[BaseModel, Path]:
        folder = prepare_base_model(source.source, cache_folder=self._cache, on_progress=self._heard, stop=self._stop)
        model = describe(folder, cache_folder=self._cache)
        if source.digest is not None and model.digest != source.digest:
            raise BaseModelMismatch(
                f"base model {source.source} has digest {model.digest}, participant.toml pins {source.digest}"
            )
        return model, folder

    def _heard(self, progress: Progress) -> None:
        self._on_step()
        log.debug("base_model_progress", phase=progress.phase.value, detail=progress.detail)
