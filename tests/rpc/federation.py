"""A federation inside one test: the real coordinator on a loop of its own, real daemons that the test turns by hand.

Real TLS, real SQLite, real masks; the clock is the test's, and training is made up. Nothing happens behind the test's
back but the driver, which is woken by every call and by `advance`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from common.adapters import ADAPTER_FILE, AdapterLayout, FlatVector, LinearLayer, create_adapter_file, open_flat
from common.basemodel import BaseModel
from common.errors import AccordError, UpdateNotFinite
from common.identifiers import FederationId, OperatorIdentity, Role
from coordinator import app
from coordinator.config import load_config
from coordinator.keystore import PkiFolder
from coordinator.services import admin_client
from coordinator.services.admin_client import AdminClient
from participant.app import serving
from participant.config import ParticipantConfig
from participant.daemon import Daemon
from participant.enrollment import enroll
from participant.identity import IdentityFolder
from participant.policy_file import load_policy
from participant.trainer import OnProgress, Preparation, Prepared
from participant.update import Contribution
from tests.fakes import FakeClock

FEDERATION = "lab"
HOST = "127.0.0.1"
WAIT_SECONDS = 20.0

LAYERS = tuple(
    LinearLayer(f"model.layers.{index}.self_attn.{name}", 24, 16) for index in range(2) for name in ("q_proj", "v_proj")
)
MODEL = BaseModel(
    name="made-up", digest="ab" * 32, architecture="MadeUpForCausalLM", layers=LAYERS, parameters=4096, dtype="F32"
)

POLICY = """
[base_models]
allow = "any"
[adapter]
most_rank = 64
modules = "any"
most_parameters = 200_000_000
[masking]
least_cohort = 3
most_element_clip = 10.0
most_update_norm = 100000.0
[training]
most_learning_rate = 1.0
most_steps_per_round = 1000
most_batch_size = 64
most_length = 4096
[rounds]
most_in_a_run = 1000
"""


@dataclass
class MadeUpTrainer:
    """"Trains" by adding a delta of the test's choice. `held_back` keeps a round's work from ending."""

    delta: Callable[[int, AdapterLayout], FlatVector]
    records: int = 100
    loss: float = 2.0
    prepared: list[int] = field(default_factory=list)

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        layout = work.plan.layout()
        base = open_flat(work.global_adapter / ADAPTER_FILE, layout)
        if work.kind.value == "train":
            work.trained_adapter.parent.mkdir(parents=True, exist_ok=True)
            mapped = create_adapter_file(work.trained_adapter, layout)
            mapped[:] = base + self.delta(work.round, layout)
            mapped.flush()
        self.prepared.append(work.round)
        metrics = {name: 0.0 for name in work.plan.masking.metrics if name != "clipped_elements"}
        metrics |= {"heldout_loss": self.loss * 50, "heldout_tokens": 50.0, "train_records": float(self.records)}
        return Prepared(Contribution(self.records, metrics), "{}")


@dataclass(frozen=True)
class MadeUpModels:
    model: BaseModel = MODEL

    def own(self) -> tuple[BaseModel, ...]:
        return (self.model,)

    def folder(self, digest: str) -> Path:
        return Path("/nowhere")


@dataclass
class Site:
    """One participant of the test."""

    name: str
    daemon: Daemon
    trainer: MadeUpTrainer
    state: Path
    _close: ExitStack

    def turn(self) -> bool:
        """One question to the coordinator and all that its answer asks for, preparation included."""
        done = self.daemon.turn(0)
        self.daemon.wait_for_preparation()
        return done

    def close(self) -> None:
        self._close.close()


class Federation:
    """The coordinator and the sites that the test has made."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.folder = folder
        self.clock = clock
        self.sites: dict[str, Site] = {}
        self.addresses: app.Addresses | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stop: asyncio.Event | None = None
        self._served: concurrent.futures.Future[None] | None = None
        config = folder / "coordinator.toml"
        ports = "".join(
            f'[{name}]\nlisten = "{HOST}:0"\n' for name in ("participants", "enrollment", "admin")
        )
        config.write_text(f'federation = "{FEDERATION}"\ndata_folder = "data"\n{ports}[health]\nhttp = ""\ngrpc = ""\n')
        self.config = load_config(config)
        pki = PkiFolder(self.config.pki_folder)
        authority = pki.create_authority(FederationId(FEDERATION), clock)
        issued = authority.issue_operator(
            OperatorIdentity(FederationId(FEDERATION), "alice", Role.OPERATOR), now=clock.now()
        )
        self._operator = admin_client.OperatorIdentity(
            issued.chain_pem.encode(), issued.key_pem, pki.trust_bundle().encode()
        )

    # --- coordinator ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        started: concurrent.futures.Future[app.Addresses] = concurrent.futures.Future()

        async def serve() -> None:
            self._stop = asyncio.Event()
            await app.serve(self.config, clock=self.clock, stop=self._stop, started=started.set_result)

        self._served = asyncio.run_coroutine_threadsafe(serve(), self._loop)
        self._served.add_done_callback(
            lambda done: started.set_exception(done.exception() or RuntimeError("stopped")) if not started.done() else None
        )
        self.addresses = started.result(WAIT_SECONDS)

    def stop(self) -> None:
        if self._served is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._served.result(WAIT_SECONDS)
            self._served = None

    def close(self) -> None:
        for site in self.sites.values():
            site.close()
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_SECONDS)

    @contextmanager
    def admin(self) -> Iterator[AdminClient]:
        assert self.addresses is not None
        with AdminClient(self.addresses.admin, self._operator) as client:
            yield client

    # --- sites ----------------------------------------------------------------------------------------------------

    def add_site(self, name: str, trainer: MadeUpTrainer, *, policy: str = POLICY) -> Site:
        """Enrol a site with a fresh token, and build its daemon."""
        state = self.folder / name
        state.mkdir()
        with self.admin() as admin:
            token = admin.create_join_token(name, ttl_seconds=3600)["token"]
        enroll(IdentityFolder(state / "identity"), token, self.clock)
        (state / "policy.toml").write_text(policy)
        return self.open_site(name, trainer)

    def open_site(self, name: str, trainer: MadeUpTrainer) -> Site:
        """A daemon over the site's folder, as after a restart."""
        assert self.addresses is not None
        state = self.folder / name
        config = ParticipantConfig.model_validate(
            {
                "state_directory": state,
                "policy_file": state / "policy.toml",
                "base_models": [{"source": "/nowhere"}],
                "data": {"train_file": "/nowhere"},
                "charter": {"mode": "coordinator"},
                "coordinator": {"address": self.addresses.participants},
            }
        )
        stack = ExitStack()
        daemon = stack.enter_context(
            serving(
                config,
                policy=load_policy(config.policy_file),
                trainer=trainer,
                base_models=MadeUpModels(),
                clock=self.clock,
            )
        )
        site = Site(name, daemon, trainer, state, stack)
        self.sites[name] = site
        return site

    # --- runs -----------------------------------------------------------------------------------------------------

    def create_run(self, run: str = "run", **settings: object) -> None:
        with self.admin() as admin:
            charter = admin.draft_charter(participants=(), least_cohort=3, colluders=None, base_model_digests=())
            admin.publish_charter(charter["charter_json"])
            admin.create_run(run, {**DEFAULTS, **settings})
            admin.start_run(f"runs/{run}")

    def run(self, name: str = "run") -> Mapping[str, object]:
        with self.admin() as admin:
            return admin.run(f"runs/{name}")

    def round(self, number: int, run: str = "run") -> Mapping[str, object]:
        with self.admin() as admin:
            return admin.round(f"runs/{run}/rounds/{number}")

    def turn_until(self, reached: Callable[[], bool], *, sites: list[str] | None = None, turns: int = 400) -> None:
        """Turn the sites in order until something holds; fails loudly if it never does."""
        for _ in range(turns):
            if reached():
                return
            for name in sites if sites is not None else list(self.sites):
                self.sites[name].turn()
        raise AssertionError(f"not reached in {turns} turns; run is {self.run()}")


DEFAULTS: Mapping[str, object] = {
    "base_model_json": MODEL.to_json(),
    "rank": 4,
    "rounds": 1,
    "element_clip": 1.0,
    "weight_cap": 1000,
    "learning_rate": 0.001,
}


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


__all__ = ["AccordError", "Federation", "MadeUpTrainer", "UpdateNotFinite", "now", "np"]
