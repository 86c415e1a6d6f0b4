"""Event files for TensorBoard, by its own writer: a folder a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from common.errors import ConfigInvalid, StorageFailed
from coordinator.tracking.points import Point, Subject

ABOUT: Final = "about.json"


class TensorBoard:
    """A `Tracker` that writes below `folder`."""

    def __init__(self, folder: Path, subject: Subject) -> None:
        """Raises ConfigInvalid if TensorBoard is not installed, StorageFailed if the folder cannot be written to."""
        try:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ConfigInvalid("TensorBoard is not installed: pip install 'accord[tensorboard]'") from error
        self._folder = folder / subject.federation / subject.run
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            before = EventAccumulator(str(self._folder), size_guidance={"tensors": 0, "scalars": 0})
            before.Reload()
            self._known = {event.step for tag in before.Tags()["tensors"] for event in before.Tensors(tag)}
            self._writer = Writer(str(self._folder))
        except OSError as error:
            raise StorageFailed(f"cannot write to {self._folder}: {error.strerror}") from error

    def known_steps(self) -> frozenset[int]:
        return frozenset(self._known)

    def add(self, points: Iterable[Point]) -> None:
        for point in points:
            if point.step in self._known:
                continue
            for name, value in sorted(point.figures.items()):
                self._writer.add_scalar(name, value, point.step, wall_time=point.at.timestamp())
            self._known.add(point.step)
        self._writer.flush()

    def describe(self, subject: Subject) -> None:
        (self._folder / ABOUT).write_text(json.dumps(asdict(subject), indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        self._writer.close()
