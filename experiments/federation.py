"""One federated run of the experiment, masked rounds and all: the product's coordinator and daemons as processes.

A folder that holds a part of a run is gone on with: coordinator and sites find their own state again.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common import jsonform
from common.adapters import ADAPTER_FILE
from common.basemodel import BaseModel
from common.durable import write_durably
from common.errors import AccordError, NotFound
from common.plan import Plan
from coordinator.config import load_config as load_coordinator_config
from coordinator.driver.ending import NO_IMPROVEMENT
from coordinator.store.opening import open_blobs
from demo.federation import Call, LocalFederation
from demo.sites import BaseModelFolder
from demo.watch import round_reports
from experiments.masking import TRAINED_FOLDER, masking_error
from experiments.presets import ALL_RECORDS
from experiments.sites import LEAST_SITES, Site, domains_of
from participant.config import load_config
from participant.journal import Journal
from participant.training.result import DomainScores, JobResult

RUN: Final = "experiment"
LOOK_SECONDS: Final = 0.5
JOIN_SECONDS: Final = 180.0
COLLUDERS: Final = 1
# A search goes on to where a rate is too large.
BOUNDS: Final = {"most_learning_rate": 1.0}
AT_ONCE: Final = 2
ADAPTER_FOLDER: Final = "adapter"
RESULT_FILE: Final = "federated.json"
FAILURE_FILE: Final = "failed.txt"

_CONFIG: Final = """
state_directory = "state"
policy_file = "policy.toml"
base_model_cache = {cache}
least_free_mebibytes = 256
base_models = [{{ source = {model}, digest = {digest} }}]
data = {{ train_file = {train}, held_out_file = {held_out}, default_domain = {domain} }}
training = {{ threads = 1, micro_batch_size = 8, checkpoint_every_steps = 0 }}
evaluation = {{ loss_records = {judged}, ner_records = 0, instruction_records = 0 }}
charter = {{ mode = "pinned", file = "charter.json", digest = "{charter}" }}
[log]
level = "warning"
"""
_POLICY: Final = """
[base_models]
allow = "any"
[adapter]
most_rank = 256
[masking]
least_cohort = 3
most_element_clip = 10.0
most_update_norm = 100000.0
[training]
most_learning_rate = 1.0
most_steps_per_round = 10000
most_batch_size = 1024
most_length = 4096
[rounds]
most_in_a_run = 10000
"""


class RunFailed(AccordError):
    """The federated run did not get to its end; the message has why."""

    reason = "RUN_FAILED"


class RunOver(RunFailed):
    """The run itself has failed or was cancelled: asked again, it would say the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFigures:
    """One round as the coordinator knows it, and what the sites' own validation says of the adapter it began from."""

    number: int
    kind: str
    adapter: str
    survivors: int
    uploaded_bytes: int
    metrics: dict[str, float]
    validation_loss: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedResult:
    """A finished run. settings: of its plan. digest: of its adapter. Bytes are sums over all sites.

    masking_error: as `experiments.masking` measures it.
    """

    settings: str
    digest: str
    rounds: tuple[RoundFigures, ...]
    masking_error: float
    seconds: float

    @property
    def uploaded_bytes(self) -> int:
        return sum(one.uploaded_bytes for one in self.rounds)

    def to_json(self) -> str:
        return jsonform.encode(self, FederatedResult)

    @classmethod
    def from_json(cls, text: str | bytes) -> FederatedResult:
        """Raises InvalidArgument."""
        return jsonform.decode(text, cls, what="federated result")


def run_federated(
    folder: Path,
    *,
    sites: Sequence[Site],
    model: BaseModel,
    base: BaseModelFolder,
    pool: Path,
    settings: Mapping[str, object],
    from_base: bool = False,
    judged: int = ALL_RECORDS,
) -> FederatedResult:
    """Run a federation in `folder`, or what is left of it; its final adapter is `folder/adapter`, a PEFT folder.

    from_base: whether its first adapter has bases from the base model's weights. judged: so many of its validation
    records each site judges every round's adapter by.
    Raises RunOver if the run fails, RunFailed if it does not come about, and ProcessEnded with a process's last words.
    """
    wanted = json.dumps(settings, sort_keys=True)
    finished, failed = folder / RESULT_FILE, folder / FAILURE_FILE
    if finished.exists():
        found = FederatedResult.from_json(finished.read_bytes())
        if found.settings == wanted:
            return found
        raise RunFailed(f"{folder} holds a run with other settings; remove it, or name another --out")
    if failed.exists():
        raise RunOver(failed.read_text())
    began = time.monotonic()
    with LocalFederation(folder, name=RUN) as federation:
        _start(federation, sites, base, pool, judged=judged)
        first = {"initial_adapter": _import_first(federation, base, settings)} if from_base else {}
        try:
            _run(federation, RUN, len(sites), {"base_model_json": model.to_json(), **settings, **first})
        except RunOver as error:
            write_durably(failed, error.message.encode())
            raise
        result = _collect(federation, sites, wanted, time.monotonic() - began)
        write_durably(finished, result.to_json().encode())
    shutil.rmtree(folder / TRAINED_FOLDER, ignore_errors=True)
    return result


def add_adapters(
    folder: Path,
    *,
    sites: Sequence[Site],
    model: BaseModel,
    base: BaseModelFolder,
    pool: Path,
    settings: Mapping[str, object],
    beneath: str,
    steps: int,
    alone_steps: int,
    own_rate: float,
) -> dict[str, Path]:
    """On top of a finished run: an adapter for each domain of three sites or more, then each site's private one.

    beneath: digest of the run's global adapter. settings: of the domains' runs, whose adapter is used only where it was
    accepted. steps: of each site's private adapter. alone_steps: of what it trains without the federation. own_rate: of
    both.
    Returns each site's own model, a PEFT folder of everything. What lies finished is not done again.
    """
    models = {site.name: folder / "models" / site.name for site in sites}
    if all((place / ADAPTER_FILE).exists() for place in models.values()):
        return models
    own_run = {site.name: RUN for site in sites}
    with LocalFederation(folder, name=RUN) as federation:
        _start(federation, sites, base, pool, judged=ALL_RECORDS)
        for domain, members in domains_of(sites).items():
            if len(members) >= LEAST_SITES:
                wanted = {"base_model_json": model.to_json(), **settings, "domain": domain, "beneath_adapter": beneath}
                if _run(federation, domain.replace("_", "-"), len(members), wanted):
                    own_run |= {site.name: domain.replace("_", "-") for site in members}
        training = (
            *("--steps", str(steps), "--alone-steps", str(alone_steps)),
            *("--learning-rate", str(own_rate), "--rows", str(ALL_RECORDS)),
        )
        calls = [
            Call(
                "participant",
                (
                    *("personalise", "--config", str(federation.site_config(site.name))),
                    *("--run", own_run[site.name], *training, str(models[site.name])),
                ),
            )
            for site in sites
            if not (models[site.name] / ADAPTER_FILE).exists()
        ]
        for first in range(0, len(calls), AT_ONCE):
            federation.commands(calls[first : first + AT_ONCE])
    return models


def _start(
    federation: LocalFederation, sites: Sequence[Site], base: BaseModelFolder, pool: Path, *, judged: int
) -> None:
    """Coordinator and sites, all at work."""
    _found(federation, sites, base, judged=judged)
    command = [sys.executable, "-m", "experiments.site", str(pool), str(federation.folder / TRAINED_FOLDER)]
    for site in sites:
        federation.start_site(site.name, command)


def _found(federation: LocalFederation, sites: Sequence[Site], base: BaseModelFolder, *, judged: int) -> None:
    """Coordinator, enrolled sites, pinned charter; harmless where they are there."""
    federation.prepare_coordinator()
    federation.start_coordinator()
    for site in sites:
        place = federation.site_folder(site.name)
        if not place.exists():
            place.mkdir(parents=True)
            (place / "policy.toml").write_text(_POLICY)
            federation.site_config(site.name).write_text(_config(site, base, charter="0" * 64, judged=judged))
    names = [site.name for site in sites]
    federation.enroll(*names)
    try:
        digest = str(federation.admin.charter()["digest"])
    except NotFound:
        # A domain's run has three sites: with a third of all assumed to collude it could open nothing.
        digest = federation.publish_charter(
            names, base_model_digests=(base.digest,), colluders=COLLUDERS, bounds=BOUNDS
        )
    for site in sites:
        federation.site_config(site.name).write_text(_config(site, base, charter=digest, judged=judged))
        if not (federation.site_folder(site.name) / "charter.json").exists():
            federation.pin_charter(site.name, digest)


def _config(site: Site, base: BaseModelFolder, *, charter: str, judged: int) -> str:
    return _CONFIG.format(
        cache=json.dumps(str(base.cache)),
        model=json.dumps(str(base.folder)),
        digest=json.dumps(base.digest),
        train=json.dumps(str(site.train.resolve())),
        held_out=json.dumps(str(site.validation.resolve())),
        domain=json.dumps(site.domain),
        charter=charter,
        judged=judged,
    )


def _run(federation: LocalFederation, run_id: str, count: int, settings: Mapping[str, object]) -> bool:
    """Create the run where it is not there yet, start it when `count` sites have joined, and wait for its end.

    False if its adapter is no improvement, so that it has none. Raises RunFailed for any other failure.
    """
    admin, name = federation.admin, f"runs/{run_id}"
    try:
        run = admin.run(name)
    except NotFound:
        run = admin.create_run(run_id, settings)
    give_up = time.monotonic() + JOIN_SECONDS
    while run["state"] == "created":
        joined = sum(bool(member["joined"]) for member in run["members"])
        if joined == count:
            admin.start_run(name)
        elif len(run["members"]) == len(federation.sites) or time.monotonic() > give_up:
            declined = [f"{one['participant']}: {one['message']}" for one in run["members"] if not one["joined"]]
            raise RunFailed("; ".join([f"{name}: {joined} of {count} sites have joined", *declined]))
        _pause(federation)
        run = admin.run(name)
    while run["state"] not in ("succeeded", "failed", "cancelled"):
        _pause(federation)
        run = admin.run(name)
    if run["state"] == "succeeded":
        return True
    if run["reason"] == NO_IMPROVEMENT:
        return False
    raise RunOver(f"{name} has {run['state']}: {run['message']}")


def _import_first(federation: LocalFederation, base: BaseModelFolder, settings: Mapping[str, object]) -> str:
    """Make an adapter with the base model's own bases, and bring it to the coordinator; its digest."""
    file = federation.folder / "first.safetensors"
    if not file.exists():
        made = ("--method", str(settings["method"]), "--rank", str(settings["rank"]), "--cache", str(base.cache))
        federation.command("participant", "initial-adapter", str(base.folder), str(file), *made)
    return str(federation.admin.import_adapter(file)["digest"])


def _pause(federation: LocalFederation) -> None:
    federation.require_running()
    time.sleep(LOOK_SECONDS)


def _collect(federation: LocalFederation, sites: Sequence[Site], settings: str, seconds: float) -> FederatedResult:
    admin = federation.admin
    run = admin.run(f"runs/{RUN}")
    digest = str(run["accepted_adapter_digest"])
    config = str(federation.coordinator_config)
    folder = str(federation.folder / ADAPTER_FOLDER)
    federation.command("coordinator", "adapter", "export", "--config", config, "--digest", digest, folder)
    judged = _validation(federation, sites)
    return FederatedResult(
        settings=settings,
        digest=digest,
        rounds=tuple(
            RoundFigures(
                number=report.number,
                kind=report.kind,
                adapter=report.base_adapter_digest,
                survivors=len(report.survivors),
                uploaded_bytes=sum(report.uploaded_bytes.values()),
                metrics=dict(report.metrics),
                validation_loss=judged.get(report.base_adapter_digest, {}),
            )
            for report in round_reports(admin, RUN)
            if report.state == "succeeded"
        ),
        masking_error=masking_error(
            federation.folder,
            plan=Plan.from_bytes(json.dumps(run["plan"]).encode()),
            rounds=[admin.round(str(row["name"])) for row in admin.rounds(f"runs/{RUN}")],
            blobs=open_blobs(load_coordinator_config(federation.coordinator_config).blobs_url),
        ),
        seconds=seconds,
    )


def _validation(federation: LocalFederation, sites: Sequence[Site]) -> dict[str, dict[str, float]]:
    """Mean validation loss by adapter and domain, from the sites' own journals, as their own people see it."""
    sums: dict[str, dict[str, DomainScores]] = {}
    for site in sites:
        journal = Journal(load_config(federation.site_config(site.name)).journal_file)
        try:
            entries = [entry for entry in journal.rounds(RUN) if entry.scores]
        finally:
            journal.close()
        for entry in {entry.adapter: entry for entry in entries}.values():
            of_adapter = sums.setdefault(entry.adapter, {})
            for score in JobResult.from_json(entry.scores).scores:
                of_adapter[score.domain] = of_adapter.get(score.domain, DomainScores(domain=score.domain)) + score
    return {
        adapter: {name: score.mean_loss for name, score in found.items() if score.mean_loss is not None}
        for adapter, found in sums.items()
    }
