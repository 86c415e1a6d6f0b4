"""A job that finds out how much of each of several adapters serves a site best, and what that gains. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from common import jsonform
from common.instructions import InstructionSet
from participant.training.job import DataSettings, FrozenAdapter, Resources

BLEND_JOB_FILE: Final = "blend.json"
BLEND_RESULT_FILE: Final = "blend_result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAdapter:
    """An adapter and what people call it: "global", "domain", "site", "alone".

    stands_alone: trained on the base model as it is, in place of those before it and not on top of them.
    """

    name: str
    adapter: FrozenAdapter
    stands_alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendJob:
    """One search. rows: held-out records at most, of which one half chooses the scales and the other tells the losses.

    Relative paths are looked up from the job folder.
    """

    base_model: Path
    base_model_digest: str
    adapters: tuple[NamedAdapter, ...]
    instruction_set: InstructionSet
    max_length: int
    data: DataSettings
    rows: int
    resources: Resources

    def to_json(self) -> str:
        return jsonform.encode(self, BlendJob)

    @classmethod
    def from_json(cls, text: str | bytes) -> BlendJob:
        """Raises InvalidArgument that lists every mistake."""
        return jsonform.decode(text, cls, what="blend job")

    def resolved(self, folder: Path) -> BlendJob:
        """The same job with every path absolute."""
        held_out = self.data.held_out_path
        return replace(
            self,
            base_model=folder / self.base_model,
            adapters=tuple(
                replace(one, adapter=replace(one.adapter, folder=folder / one.adapter.folder)) for one in self.adapters
            ),
            data=replace(
                self.data,
                train_path=folder / self.data.train_path,
                held_out_path=None if held_out is None else folder / held_out,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendRow:
    """One line of the table: what is used, by which scales (in the order of the adapters), and the two halves' losses.

    choosing_loss, loss: nats per answer token; the second of records that had no say in the scales.
    """

    name: str
    scales: tuple[float, ...]
    choosing_loss: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendResult:
    """The table, from the base model alone to the chosen scales, which are the last row's."""

    rows: tuple[BlendRow, ...]
    choosing_records: int
    records: int

    @property
    def scales(self) -> tuple[float, ...]:
        return self.rows[-1].scales

    def to_json(self) -> str:
        return jsonform.encode(self, BlendResult)

    @classmethod
    def from_json(cls, text: str | bytes) -> BlendResult:
        """Raises InvalidArgument."""
        return jsonform.decode(text, cls, what="blend result")


def write_blend_job(folder: Path, job: BlendJob) -> None:
    """Write the job into its folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BLEND_JOB_FILE).write_text(job.to_json() + "\n")
