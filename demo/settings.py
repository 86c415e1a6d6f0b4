"""What a demo run is asked to do: numbers that fit three rounds into minutes on two cores, and where things lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.basemodel import BaseModel
from common.instructions import chat_instruction_set


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The plan's training: the same at every site.

    server_learning_rate over 1: three sites train on three different things, so their mean moves each of them only a
    third of the way; the server takes a larger step.
    """

    method: str = "fedit"
    rounds: int = 3
    steps_per_round: int = 24
    batch_size: int = 8
    learning_rate: float = 1e-3
    server_learning_rate: float = 1.5
    max_length: int = 192
    rank: int = 8
    alpha: float = 16.0
    seed: int = 7
    gate_loss_rise: float = 0.25

    def plan_settings(self, model: BaseModel) -> dict[str, object]:
        """As the admin API takes them."""
        return {
            "base_model_json": model.to_json(),
            "method": self.method,
            "rank": self.rank,
            "alpha": self.alpha,
            "rounds": self.rounds,
            "learning_rate": self.learning_rate,
            "server_learning_rate": self.server_learning_rate,
            "steps_per_round": self.steps_per_round,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "seed": self.seed,
            "gate_loss_rise": self.gate_loss_rise,
            "instruction_set_json": chat_instruction_set().to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How many of its held-out records each site uses, every round. Free answers are dear: a pass for every token."""

    loss_records: int = 80
    ner_records: int = 32
    instruction_records: int = 24
    max_new_tokens: int = 40

    def at_most(self, records: int) -> Judging:
        """The same with no more than so many records of each kind."""
        return Judging(
            loss_records=min(self.loss_records, records),
            ner_records=min(self.ner_records, records),
            instruction_records=min(self.instruction_records, records),
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """All that `python -m demo` is told.

    root: where runs go. cache: base model and records, kept from run to run. base_model: another one than the wheel's.
    records: at most so many training records a site, 0 for all. examples: questions a domain put to both models.
    """

    root: Path
    cache: Path
    training: Training = Training()
    judging: Judging = Judging()
    json_file: Path | None = None
    base_model: Path | None = None
    records: int = 0
    examples: int = 3
