"""A participant whose training is made up: the product's daemon, journal, masks and transport, with an instant trainer.

    python -m benchmarks.made_up_site participant.toml

The base model is only described: `base-model.json` beside the configuration. Deltas are whole multiples of the
quantisation step: nothing is left to be rounded at random, and a round gives the same adapter whenever it is played.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from common import log
from common.adapters import ADAPTER_FILE, FLOAT32_BYTES, FlatVector
from common.basemodel import BaseModel
from common.clock import SystemClock
from common.plan import HELD_OUT_GROUP, Plan
from common.secagg import lane_limit
from common.states import RoundKind
from participant.app import serving
from participant.config import load_config
from participant.policy_file import load_policy
from participant.trainer import OnProgress, Preparation, Prepared
from participant.update import Contribution

BASE_MODEL_FILE: Final = "base-model.json"
BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class DescribedModel:
    """A base model that nobody loads."""

    model: BaseModel

    def own(self) -> tuple[BaseModel, ...]:
        return (self.model,)

    def folder(self, digest: str) -> Path:
        return Path()


class MadeUpTrainer:
    """Adds a delta that follows from the site's name and the round."""

    def check(self, plan: Plan) -> None:
        """There are no records, of any domain, and it takes part all the same."""

    def metric_groups(self) -> frozenset[str]:
        return frozenset((HELD_OUT_GROUP,))

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        if work.kind is RoundKind.TRAIN:
            write_trained(work)
        metrics = {name: 0.0 for name in work.plan.masking.metric_words if name != "clipped_elements"}
        metrics |= {"heldout_loss": 100.0, "heldout_tokens": 50.0}
        return Prepared(Contribution(work.plan.masking.weight_cap, metrics), "{}")


def quantisation_step(plan: Plan) -> float:
    """C / L: a delta in whole steps, at full weight, is rounded by nobody."""
    masking = plan.masking
    return masking.element_clip / lane_limit(masking.lanes, masking.most_participants)


def made_up_delta(plan: Plan, participant: str, round_: int) -> FlatVector:
    """One block of float32 in whole quantisation steps; the delta repeats it."""
    seed = hashlib.sha256(f"{participant}/{round_}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(seed, dtype=np.uint32))
    steps = generator.integers(-3, 4, size=BLOCK)
    return (steps * quantisation_step(plan)).astype(np.float32)


def write_trained(work: Preparation) -> None:
    """The global adapter plus the delta, block by block."""
    header = work.plan.layout().header()
    delta = made_up_delta(work.plan, work.participant, work.round)
    work.trained_adapter.parent.mkdir(parents=True, exist_ok=True)
    with (work.global_adapter / ADAPTER_FILE).open("rb") as base, work.trained_adapter.open("wb") as trained:
        base.seek(len(header))
        trained.write(header)
        while content := base.read(BLOCK * FLOAT32_BYTES):
            values = np.frombuffer(content, dtype=np.float32)
            trained.write((values + delta[: values.size]).data)


def main() -> None:
    config = load_config(Path(sys.argv[1]))
    log.configure(form=config.log.form, level=config.log.level_number)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    model = BaseModel.from_json((Path(sys.argv[1]).parent / BASE_MODEL_FILE).read_text())
    with serving(
        config,
        policy=load_policy(config.policy_file),
        trainer=MadeUpTrainer(),
        base_models=DescribedModel(model),
        clock=SystemClock(),
    ) as daemon:
        daemon.run(stop)


if __name__ == "__main__":
    main()
