"""Canaries and membership inference, without private training and with it, on a real small model; prints one JSON line.

    python -m benchmarks.privacy
    python -m benchmarks.privacy --preset full
    python -m benchmarks.privacy --epsilon 8 --epsilon 4 --epsilon 2 --method core

The help desk's records and canaries among them are trained on as one site does in a whole run, then its adapter is
attacked. That is more than anybody sees: what is published is made of a sum over at least three such adapters.

canary_auc: how often a canary that was trained on lost more of its loss than one that was not; record_auc: the same for
ordinary records. 0.5 is chance. canary_exposure_bits: how much better than others a canary's secret is guessed, at most
most_exposure_bits; chance_exposure_bits is what it comes to without any memory. heldout_loss: what privacy costs, of
ordinary records that were not trained on, and before any training.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.privacy.arms import Attack, Setting
from benchmarks.privacy.canaries import canaries, chance_exposure_bits
from common.adapters import AdapterSpec
from common.methods import Method
from demo.founding import prepare_model
from demo.sources import help_desk
from demo.sources.records import Record
from participant.training.data import Exchange

CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "demo"
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SEED: Final = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How much of everything. guesses: other secrets for each canary."""

    records: int
    others: int
    canaries: int
    guesses: int
    batch_size: int
    steps: int


PRESETS: Final = {
    "small": Preset(records=80, others=32, canaries=16, guesses=7, batch_size=16, steps=36),
    "full": Preset(records=440, others=128, canaries=60, guesses=31, batch_size=32, steps=150),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    preset = PRESETS[options.preset]
    model, base = prepare_model(CACHE, options.base_model)
    parts = help_desk.build(train=preset.records, held_out=preset.others)
    made = canaries(2 * preset.canaries, others=preset.guesses, seed=SEED)
    setting = Setting(
        model=model,
        folder=base.folder,
        spec=AdapterSpec(rank=options.rank, alpha=2.0 * options.rank, target_modules=TARGETS),
        method=Method(name=options.method),
        members=[_exchange(record) for record in parts.train],
        others=[_exchange(record) for record in parts.held_out],
        inserted=made[: preset.canaries],
        reference=made[preset.canaries :],
        batch_size=preset.batch_size,
        steps=options.steps or preset.steps,
        learning_rate=options.learning_rate,
        clip=options.clip,
        max_length=192,
        threads=options.threads,
    )
    attack = Attack(setting)
    arms = [attack.arm(epsilon) for epsilon in (None, *(options.epsilon or (8.0, 2.0)))]
    found = {
        "preset": options.preset,
        "model": model.name,
        "method": options.method,
        "rank": options.rank,
        "records": setting.records,
        "canaries": len(setting.inserted),
        "steps": setting.steps,
        "batch_size": setting.batch_size,
        "learning_rate": setting.learning_rate,
        "clip": setting.clip,
        "most_exposure_bits": math.log2(preset.guesses + 1),
        "chance_exposure_bits": round(chance_exposure_bits(preset.guesses), 2),
        "arms": [asdict(arm) for arm in arms],
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _exchange(record: Record) -> Exchange:
    return Exchange(record.instruction, record.input_text, record.output)


def _parser() -> argparse.ArgumentParser:
    head, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.privacy",
        description=head,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument(
        "--epsilon", type=float, action="append", help="a private arm; may be repeated; default: 8 and 2"
    )
    parser.add_argument("--method", default="fedit", help="default: fedit")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=0, help="default: the preset's")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--clip", type=float, default=0.5, help="L2 bound on one record's gradient")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--base-model", type=Path, help="folder of a base model; default: SmolLM2-135M-Instruct")
    return parser


if __name__ == "__main__":
    sys.exit(main())
