"""A participant of an experiment: the product's daemon, journal, masks and transport; its training jobs go to the pool.

python -m experiments.site SOCKET KEPT participant.toml
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common import log
from common.clock import SystemClock
from common.states import RoundKind
from experiments.pool import run_in_pool
from participant.app import serving
from participant.base_models import BaseModelSource, ConfiguredBaseModels
from participant.config import load_config
from participant.policy_file import load_policy
from participant.trainer import OnProgress, Preparation, Prepared, WorkerTrainer
from participant.training.process import StopSignal
from participant.training.result import JobResult

CONTRIBUTION_FILE: Final = "contribution.json"


@dataclass(frozen=True, slots=True)
class PoolRun:
    """Jobs go to the pool at this socket."""

    address: Path

    def __call__(self, job_folder: Path, on_progress: OnProgress, *, stop: StopSignal | None = None) -> JobResult:
        return run_in_pool(self.address, job_folder, stop=stop)


@dataclass(frozen=True, slots=True)
class PoolTrainer(WorkerTrainer):
    """As the product's, but that what was trained is kept.

    kept: a folder for copies of what was trained, so that the masked sum can be held against the plain mean.
    """

    kept: Path = Path()

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        prepared = WorkerTrainer.prepare(self, work, on_progress=on_progress, stop=stop)
        if work.kind is RoundKind.TRAIN:
            place = self.kept / work.plan.run / str(work.round) / work.participant
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(work.trained_adapter, place / work.trained_adapter.name)
            (place / CONTRIBUTION_FILE).write_text(prepared.contribution.to_json())
        return prepared


def main() -> None:
    address, kept, file = (Path(argument) for argument in sys.argv[1:])
    config = load_config(file)
    log.configure(form=config.log.form, level=config.log.level_number)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    policy = load_policy(config.policy_file)
    trainer = PoolTrainer(
        config.data.settings(policy),
        config.evaluation.settings(),
        config.training.resources(),
        PoolRun(address),
        kept,
    )
    sources = tuple(BaseModelSource(model.source, model.digest) for model in config.base_models)
    base_models = ConfiguredBaseModels(sources, cache=config.cache_directory, stop=stop)
    with serving(config, policy=policy, trainer=trainer, base_models=base_models, clock=SystemClock()) as daemon:
        daemon.run(stop)


if __name__ == "__main__":
    main()
