"""A federation of made-up sites on this machine: real processes, mTLS and full masking, but nobody trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.made_up_site import BASE_MODEL_FILE
from common.adapters import LinearLayer
from common.basemodel import BaseModel
from common.secagg import choose_lanes, lane_limit
from demo.federation import LocalFederation, Process

RANK: Final = 8
WIDTH: Final = 2048
# A power of two, coarse enough for float32: a delta that is added to the weights and taken off again is the same.
QUANTISATION_STEP: Final = 2.0**-10
SITE: Final = (sys.executable, "-m", "benchmarks.made_up_site")

CONFIG: Final = """
state_directory = "state"
policy_file = "policy.toml"
base_models = [{{ source = "/described/only" }}]
data = {{ train_file = "/none" }}
charter = {{ mode = "pinned", file = "charter.json", digest = "{digest}" }}
[log]
level = "{level}"
"""
POLICY: Final = """
[base_models]
allow = "any"
[adapter]
most_rank = 64
modules = "any"
most_parameters = 1_000_000_000
[masking]
least_cohort = 3
most_element_clip = 10.0
most_update_norm = 1000000.0
[training]
most_learning_rate = 1.0
most_steps_per_round = 1000
most_batch_size = 64
most_length = 4096
[rounds]
most_in_a_run = 100_000
"""


def made_up_model(mebibytes: float) -> BaseModel:
    """A base model whose rank-8 adapter has about this float32 size."""
    per_layer = RANK * 2 * WIDTH
    count = max(1, round(mebibytes * 1024 * 1024 / 4 / per_layer))
    layers = tuple(LinearLayer(f"model.layers.{index}.q_proj", WIDTH, WIDTH) for index in range(count))
    return BaseModel("made-up", "ab" * 32, "MadeUpForCausalLM", layers, count * WIDTH * WIDTH, "F32")


def parameters_of(model: BaseModel) -> int:
    """Parameters of the model's rank-8 adapter."""
    return sum(RANK * (layer.in_features + layer.out_features) for layer in model.layers)


def found(federation: LocalFederation, names: Sequence[str], model: BaseModel, *, log_level: str = "warning") -> None:
    """Start the coordinator, enrol the sites and pin the charter; the sites are not started."""
    federation.prepare_coordinator()
    federation.start_coordinator()
    for name in names:
        folder = federation.site_folder(name)
        folder.mkdir(parents=True)
        (folder / BASE_MODEL_FILE).write_text(model.to_json())
        (folder / "policy.toml").write_text(POLICY)
        federation.site_config(name).write_text(CONFIG.format(digest="0" * 64, level=log_level))
    federation.enroll(*names)
    digest = federation.publish_charter(names)
    for name in names:
        federation.pin_charter(name, digest)
        federation.site_config(name).write_text(CONFIG.format(digest=digest, level=log_level))


def create_run(
    federation: LocalFederation, run: str, model: BaseModel, *, rounds: int, participants: int, **settings: object
) -> None:
    """Create a run and start it."""
    most_participants = max(10, participants)
    federation.admin.create_run(
        run,
        {
            "base_model_json": model.to_json(),
            "rank": RANK,
            "rounds": rounds,
            "element_clip": QUANTISATION_STEP * lane_limit(choose_lanes(most_participants), most_participants),
            "most_participants": most_participants,
            **settings,
        },
    )
    federation.admin.start_run(f"runs/{run}")


def pid_of(process: Process) -> int:
    """Raises RuntimeError for a process that was never started."""
    if process.child is None:
        raise RuntimeError(f"{process.name} was not started")
    return process.child.pid
