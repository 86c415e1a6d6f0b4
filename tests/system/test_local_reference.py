"""What a site reaches alone, by real training processes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from common.instructions import Task
from participant.reference import local_reference
from participant.training.process import run_worker
from tests.system.test_training_worker import make_site
from tests.tiny_model import TINY_SPEC, make_tiny_model

pytestmark = pytest.mark.system


def test_a_site_alone_learns_something_and_says_the_same_when_asked_again(tmp_path: Path) -> None:
    site = make_site(tmp_path, make_tiny_model(tmp_path / "tiny"))
    job = site.job.resolved(tmp_path / "round")
    phases: list[str] = []

    def ask(steps: int) -> float:
        found = local_reference(
            tmp_path / f"reference-{steps}",
            job,
            spec=TINY_SPEC,
            seed=7,
            steps=steps,
            run_job=run_worker,
            on_progress=lambda progress: phases.append(progress.phase.value),
            stop=threading.Event(),
        )
        assert set(found) == {("general", Task.CLASSIFICATION)}
        return found["general", Task.CLASSIFICATION]

    much, little = ask(30), ask(1)
    assert much < 0.8 * little
    phases.clear()
    assert ask(30) == much
    assert phases == []
