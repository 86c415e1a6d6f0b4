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
from participant.trainer import OnProgress, Preparation, Prepared, WorkerTrainer, contribution_of
from participant.training.job import write_job

CONTRIBUTION_FILE: Final = "contribution.json"


@dataclass(frozen=True, slots=True)
class PoolTrainer(WorkerTrainer):
    """As the product's, but for who runs the training process.

    kept: a folder for copies of what was trained, so that the masked sum can be held against the plain mean.
    """

    socket: Path
    kept: Path

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        write_job(work.job, self.job_of(work))
        result = run_in_pool(self.socket, work.job, stop=stop)
        contribution = contribution_of(result, work.plan)
        if work.kind is RoundKind.TRAIN:
            place = self.kept / str(work.round) / work.participant
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(work.trained_adapter, place / work.trained_adapter.name)
            (place / CONTRIBUTION_FILE).write_text(contribution.to_json())
        return Prepared(contribution, result.to_json())


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
        address,
        kept,
    )
    sources = tuple(BaseModelSource(model.source, model.digest) for model in config.base_models)
    base_models = ConfiguredBaseModels(sources, cache=config.cache_directory, stop=stop)
    with serving(config, policy=policy, trainer=trainer, base_models=base_models, clock=SystemClock()) as daemon:
        daemon.run(stop)


if __name__ == "__main__":
    main()
