"""A private job in the real training process: killed, it goes on with its own noise; without a key it is refused."""

from __future__ import annotations

import secrets
import subprocess
import sys
from dataclasses import replace

import pytest

from common.errors import InvalidArgument
from participant.training.job import NOISE_KEY_FILE, PrivateSettings, write_job
from participant.training.result import Phase
from tests.programs import ROOT
from tests.system.test_training_worker import Site, make_site
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.system

PRIVATE = PrivateSettings(sample_rate=0.25, noise_multiplier=1.0, clip=0.5, records=24)


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path, make_tiny_model(tmp_path / "tiny"))


def with_key(site: Site, name: str, key: bytes) -> Site:
    (site.folder / name).mkdir()
    (site.folder / name / NOISE_KEY_FILE).write_bytes(key)
    return site


class Killed(Exception):
    """What the daemon's end is to the job."""


def test_a_private_job_that_was_killed_ends_with_the_bits_that_it_would_have_had(site):
    key = secrets.token_bytes(32)

    def kill(progress):
        if progress.phase is Phase.TRAIN and progress.step == 3:
            raise Killed

    with_key(site, "whole", key).run("whole", private=PRIVATE)
    with pytest.raises(Killed):
        with_key(site, "killed", key).run("killed", on_progress=kill, private=PRIVATE)
    result = site.run("killed", private=PRIVATE)
    assert result.training is not None
    assert site.adapter("killed") == site.adapter("whole")


def test_another_key_gives_another_adapter_and_ordinary_training_a_third(site):
    for name in ("one", "other"):
        with_key(site, name, secrets.token_bytes(32)).run(name, private=PRIVATE)
    site.run("ordinary")
    assert len({site.adapter(name) for name in ("one", "other", "ordinary")}) == 3


def test_a_private_job_without_its_key_is_refused(site):
    with pytest.raises(InvalidArgument, match="key"):
        site.run("without", private=PRIVATE)
    assert not (site.folder / "without" / "adapter").exists()


@pytest.mark.parametrize("private", [None, PRIVATE], ids=["ordinary", "private"])
def test_only_a_private_job_loads_what_is_for_private_ones(site, private):
    with_key(site, "job", secrets.token_bytes(32))
    write_job(site.folder / "job", replace(site.job, private=private))
    words = [sys.executable, "-X", "importtime", "-m", "participant.training.worker", str(site.folder / "job")]
    done = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in loaded
    assert ("opacus" in loaded) is (private is not None)
