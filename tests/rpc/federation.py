"""A federation inside one test: the real coordinator on a loop of its own, real daemons that the test turns by hand.

Real TLS, real SQLite, real masks; the clock is the test's, and training is made up. The driver's loop runs as it does
in production; `settle` takes its due steps in the test's own thread, so that what follows sees them done.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import threading
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from common.adapters import ADAPTER_FILE, AdapterLayout, FlatVector, LinearLayer, create_adapter_file, open_flat
from common.basemodel import BaseModel
from common.errors import Unavailable
from common.identifiers import FederationId, OperatorId, OperatorIdentity, Role
from common.plan import HELD_OUT_GROUP, Plan
from common.sent import sent_vector
from coordinator import app
from coordinator.addresses import Addresses
from coordinator.config import load_config
from coordinator.driver import Driver
from coordinator.keystore import PkiFolder
from coordinator.services import admin_client
from coordinator.services.admin_client import AdminClient
from coordinator.store.opening import open_blobs
from demo.ports import HOST, free_ports
from participant import app as participant_app
from participant.client import CoordinatorClient
from participant.config import ParticipantConfig
from participant.connection import Connection
from participant.daemon import Daemon
from participant.enrollment import enroll
from participant.identity import IdentityFolder
from participant.journal import Journal, RoundPhase
from participant.network.dialling import dial, dial_for_uploads
from participant.policy_file import load_policy
from participant.trainer import OnProgress, Preparation, Prepared
from participant.update import Contribution
from tests.fakes import FakeClock

FEDERATION = "lab"
WAIT_SECONDS = 20.0


def base_model(*, size: int = 24) -> BaseModel:
    """Four made-up linear layers of size x 16."""
    layers = tuple(
        LinearLayer(f"model.layers.{index}.self_attn.{name}", size, 16)
        for index in range(2)
        for name in ("q_proj", "v_proj")
    )
    return BaseModel(
        name="made-up", digest="ab" * 32, architecture="MadeUpForCausalLM", layers=layers, parameters=4096, dtype="F32"
    )


MODEL = base_model()

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

# Windows in seconds of the test's clock: training is by far the longest, as it is in production.
WINDOW = 10
TRAINING_WINDOW = 200
DEFAULTS: Mapping[str, object] = {
    "base_model_json": MODEL.to_json(),
    "rank": 4,
    "rounds": 1,
    "element_clip": 1.0,
    "weight_cap": 1000,
    "learning_rate": 0.001,
    **{phase: {"window_seconds": WINDOW} for phase in ("forming", "collecting", "unmasking", "key_setup")},
    "training": {"window_seconds": TRAINING_WINDOW},
}


def delta_of(seed: int, *, size: float = 0.3) -> Callable[[int, AdapterLayout], FlatVector]:
    """A made-up delta: the same for the same seed and round."""

    def delta(round_: int, layout: AdapterLayout) -> FlatVector:
        generator = np.random.default_rng([seed, round_])
        return (generator.random(layout.parameters, dtype=np.float32) * 2 - 1) * np.float32(size)

    return delta


def moving(plan: Plan, round_: int) -> NDArray[np.bool_]:
    """bool[d]: which elements of the adapter move in a round; the others' made-up deltas are not added."""
    found = np.zeros(plan.layout().parameters, dtype=np.bool_)
    for slot in sent_vector(plan, round_).tensors:
        found[slot.offset : slot.offset + slot.size] = True
    return found


@dataclass
class MadeUpTrainer:
    """ "Trains" by adding a delta of the test's choice; `loss` is what it finds on held-out records, by round.

    groups: the metric groups that it declares, whatever figures it has.
    """

    delta: Callable[[int, AdapterLayout], FlatVector]
    records: int = 100
    loss: Callable[[int], float] = lambda round_: 2.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    groups: frozenset[str] = frozenset((HELD_OUT_GROUP,))
    spoil: Callable[[Preparation], None] = lambda work: None
    prepared: list[int] = field(default_factory=list)

    def check(self, plan: Plan) -> None:
        """There are no records, of any domain, and it takes part all the same."""

    def metric_groups(self) -> frozenset[str]:
        return self.groups

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        layout = work.plan.layout()
        base = open_flat(work.global_adapter / ADAPTER_FILE, layout)
        if work.kind.value == "train":
            work.trained_adapter.parent.mkdir(parents=True, exist_ok=True)
            mapped = create_adapter_file(work.trained_adapter, layout)
            mapped[:] = base
            moves = moving(work.plan, work.round)
            mapped[moves] += self.delta(work.round, layout)[moves]
            mapped.flush()
        self.spoil(work)
        self.prepared.append(work.round)
        metrics = {name: 0.0 for name in work.plan.masking.metric_words if name != "clipped_elements"}
        metrics |= {"heldout_loss": self.loss(work.round) * 50, "heldout_tokens": 50.0}
        metrics |= {"train_records": float(self.records), **self.metrics}
        return Prepared(Contribution(self.records, metrics), "{}")


@dataclass(frozen=True)
class MadeUpModels:
    model: BaseModel = MODEL

    def own(self) -> tuple[BaseModel, ...]:
        return (self.model,)

    def folder(self, digest: str) -> Path:
        return Path("/nowhere")


class Line:
    """A site's line to the coordinator. Cut, every call ends as Unavailable until it is mended."""

    def __init__(self) -> None:
        self._before: str | None = None
        self._after: str | None = None
        self._lost: str | None = None
        self._refused: dict[str, float] = {}
        self._doctors: dict[str, Callable[[Any], Any]] = {}
        self.is_cut = False
        # Of every call that the site has made: what it carried, whether or not it got through; and those that did.
        self.attempts: dict[str, list[tuple[tuple[Any, ...], Mapping[str, Any]]]] = {}
        self.calls: list[str] = []

    def cut(self, *, before: str | None = None, after: str | None = None, losing_answer_to: str | None = None) -> None:
        """From the next call of that name on. losing_answer_to: it still arrives, and its answer does not."""
        self._before, self._after, self._lost = before, after, losing_answer_to
        self.is_cut = before is None and after is None and losing_answer_to is None

    def refuse(self, name: str, *, times: float = math.inf) -> None:
        """So many calls of this name alone do not get through."""
        self._refused[name] = times

    def mend(self) -> None:
        self._before = self._after = self._lost = None
        self._refused.clear()
        self.is_cut = False

    def forget(self) -> None:
        """Begin the record of calls anew."""
        self.attempts.clear()
        self.calls.clear()

    def doctor(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change what the coordinator answers to the calls of that name."""
        self._doctors[name] = change

    def carry(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.attempts.setdefault(name, []).append((args, kwargs))
        if self.is_cut or name == self._before:
            self.is_cut = True
            raise Unavailable("the line is cut")
        if self._refused.get(name, 0) > 0:
            self._refused[name] -= 1
            raise Unavailable("the call does not get through")
        answer = call(*args, **kwargs)
        self.calls.append(name)
        answer = self._doctors[name](answer) if name in self._doctors else answer
        if name == self._lost:
            self.is_cut = True
            raise Unavailable("the line is cut, and the answer is lost")
        if name == self._after:  # never the other way round: a call of another thread may end later
            self.is_cut = True
        return answer


class LinedClient:
    """A CoordinatorClient over a line that the test can cut."""

    def __init__(self, client: CoordinatorClient, line: Line) -> None:
        self._client = client
        self._line = line

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)
        return lambda *args, **kwargs: self._line.carry(name, call, *args, **kwargs)


class SteppedDriver(Driver):
    """The driver, with steps that a test may take too: one who steps at a time."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.turn = threading.Lock()

    def step_all(self) -> float:
        with self.turn:
            return super().step_all()


@dataclass
class Site:
    """One participant of the test."""

    name: str
    daemon: Daemon
    trainer: MadeUpTrainer
    state: Path
    line: Line
    connection: Connection
    _federation: Federation
    _close: ExitStack

    def turn(self) -> bool:
        """One question to the coordinator and all that its answer asks for, preparation included."""
        if self.line.is_cut:
            return False
        try:
            done = self.daemon.turn(0)
        except Unavailable:
            return False
        finally:
            # Without its line a site goes on trying by itself.
            while not self.daemon.wait_for_preparation(0.05) and not self.line.is_cut:
                pass
        self._federation.settle()
        return done

    @property
    def client(self) -> CoordinatorClient:
        """This site's own client, for calls that its daemon would not make; its line is never cut."""
        return self.connection.client()._client  # type: ignore[attr-defined]

    def journal(self) -> Journal:
        """A look into the journal of a site that is open or closed; the caller's to close."""
        return Journal(self.state / "journal.sqlite")

    def phase(self, round_: int, run: str = "run") -> RoundPhase | None:
        journal = self.journal()
        try:
            entry = journal.round(run, round_)
            return entry.phase if entry is not None else None
        finally:
            journal.close()

    @contextmanager
    def channels(self) -> Iterator[tuple[grpc.Channel, grpc.Channel]]:
        """Fresh channels with this site's certificate, for calls and for uploads: what a lying site would use."""
        identity = self.connection.identity
        assert self._federation.addresses is not None
        enrollment = replace(identity.enrollment, coordinator_address=self._federation.addresses.participants)
        identity = replace(identity, enrollment=enrollment)
        with dial(identity) as channel, dial_for_uploads(identity) as uploads:
            yield channel, uploads

    def close(self) -> None:
        self.daemon.stop_preparation()
        self._close.close()


class Federation:
    """The coordinator and the sites that the test has made."""

    def __init__(
        self, folder: Path, clock: FakeClock, *, model: BaseModel = MODEL, limits: str = "", sections: str = ""
    ) -> None:
        """limits: more of that section; sections: more of coordinator.toml."""
        self.folder = folder
        self.clock = clock
        self.model = model
        self.sites: dict[str, Site] = {}
        self.own_certificates: dict[str, dict[str, Path]] = {}
        self.addresses: Addresses | None = None
        self.driver: SteppedDriver | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        # A thread for each site: one that waits for the commits of a quorum keeps its thread until they are there.
        self._pool = concurrent.futures.ThreadPoolExecutor(64)
        self._stop: asyncio.Event | None = None
        self._served: concurrent.futures.Future[None] | None = None
        config = folder / "coordinator.toml"
        listeners = ("participants", "enrollment", "admin")
        ports = "".join(
            f'[{name}]\nlisten = "{HOST}:{port}"\n' for name, port in zip(listeners, free_ports(3), strict=True)
        )
        config.write_text(
            f'federation = "{FEDERATION}"\ndata_folder = "data"\n{ports}[health]\nhttp = "{HOST}:0"\ngrpc = ""\n'
            f"[limits]\ncalls_per_second = 100000.0\ncalls_burst = 100000\nstop_grace_seconds = 0.5\n"
            f"{limits}\n{sections}"
        )
        self.config = load_config(config)
        pki = PkiFolder(self.config.pki_folder)
        authority = pki.create_authority(FederationId(FEDERATION), clock)
        issued = authority.issue_operator(
            OperatorIdentity(FederationId(FEDERATION), OperatorId("alice"), Role.OPERATOR), now=clock.now()
        )
        self._operator = admin_client.OperatorIdentity(
            issued.chain_pem.encode(), issued.key_pem, pki.trust_bundle().encode()
        )
        self._admin: AdminClient | None = None

    # --- coordinator ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve, on the same ports as before."""
        started: concurrent.futures.Future[Addresses] = concurrent.futures.Future()

        def build(**parts: Any) -> SteppedDriver:
            self.driver = SteppedDriver(**parts)
            return self.driver

        async def serve() -> None:
            self._stop = asyncio.Event()
            await app.serve(self.config, clock=self.clock, stop=self._stop, started=started.set_result)

        def ended(done: concurrent.futures.Future[None]) -> None:
            if not started.done():
                started.set_exception(done.exception() or RuntimeError("stopped"))

        with patch.object(app, "Driver", build):
            self._served = asyncio.run_coroutine_threadsafe(serve(), self._loop)
            self._served.add_done_callback(ended)
            self.addresses = started.result(WAIT_SECONDS)

    def stop(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        if self._served is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._served.result(WAIT_SECONDS)
            self._served = self.driver = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        for site in self.sites.values():
            site.close()
        self.stop()
        self._pool.shutdown()
        asyncio.run_coroutine_threadsafe(_end_all_tasks(), self._loop).result(WAIT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_SECONDS)
        self._loop.close()

    @property
    def admin(self) -> AdminClient:
        """Alice's client; one channel while the coordinator runs."""
        if self._admin is None:
            assert self.addresses is not None
            self._admin = AdminClient(self.addresses.admin, self._operator)
        return self._admin

    def settle(self) -> None:
        """Take every step of the driver that is due."""
        if self.driver is not None:
            self.driver.step_all()

    def advance(self, seconds: float) -> None:
        """Move the clock, and take the steps that are due then."""
        self.clock.advance(seconds=seconds)
        self.settle()

    # --- sites ----------------------------------------------------------------------------------------------------

    def add_site(self, name: str, trainer: MadeUpTrainer, *, policy: str = POLICY) -> Site:
        """Enrol a site with a fresh token, and build its daemon."""
        state = self.folder / name
        state.mkdir()
        token = self.admin.create_join_token(name, ttl_seconds=3600)["token"]
        enroll(IdentityFolder(state / "identity"), token, self.clock)
        (state / "policy.toml").write_text(policy)
        return self.open_site(name, trainer)

    def add_site_of_its_own_pki(
        self, name: str, trainer: MadeUpTrainer, files: dict[str, Path], *, policy: str = POLICY
    ) -> Site:
        """Build the daemon of a site that never enrolls. files: `certificates` of its configuration."""
        state = self.folder / name
        state.mkdir()
        (state / "policy.toml").write_text(policy)
        self.own_certificates[name] = files
        return self.open_site(name, trainer)

    def add_sites(self, count: int, **settings: Any) -> list[str]:
        """Sites with records of 400, 500, ... and deltas of their own; their names, sorted."""
        names = [f"site-{index}" for index in range(count)]
        for index, name in enumerate(names):
            self.add_site(name, MadeUpTrainer(delta_of(index), records=400 + 100 * index, **settings))
        return names

    def open_site(self, name: str, trainer: MadeUpTrainer, *, model: BaseModel | None = None) -> Site:
        """A daemon over the site's folder, as after a restart."""
        assert self.addresses is not None
        state, line = self.folder / name, Line()
        config = ParticipantConfig.model_validate(
            {
                "state_directory": state,
                "policy_file": state / "policy.toml",
                "base_models": [{"source": "/nowhere"}],
                "data": {"train_file": "/nowhere"},
                "charter": {"mode": "coordinator"},
                "coordinator": {"address": self.addresses.participants},
                "certificates": self.own_certificates.get(name),
                "least_free_mebibytes": 0,
            }
        )
        connections: list[Connection] = []

        class LinedConnection(Connection):
            def client(self) -> CoordinatorClient:
                return LinedClient(super().client(), line)  # type: ignore[return-value]

        def connect(*args: Any, **parts: Any) -> Connection:
            connections.append(LinedConnection(*args, **parts))
            return connections[0]

        stack = ExitStack()
        with patch.object(participant_app, "Connection", connect):
            daemon = stack.enter_context(
                participant_app.serving(
                    config,
                    policy=load_policy(config.policy_file),
                    trainer=trainer,
                    base_models=MadeUpModels(model or self.model),
                    clock=self.clock,
                )
            )
        site = Site(name, daemon, trainer, state, line, connections[0], self, stack)
        self.sites[name] = site
        return site

    def reopen_site(self, name: str) -> Site:
        """What a kill and a new start are to a site: all that it knows is what its folder says."""
        self.sites[name].close()
        return self.open_site(name, self.sites[name].trainer, model=self.model)

    def turn(self, names: Iterable[str] | None = None) -> None:
        """Every site takes a turn, all of them at once."""
        chosen = list(self.sites) if names is None else list(names)
        for _ in self._pool.map(lambda name: self.sites[name].turn(), chosen):
            pass
        self.settle()

    def turn_until(
        self,
        reached: Callable[[], bool],
        *,
        sites: Iterable[str] | None = None,
        one_by_one: bool = False,
        turns: int = 60,
    ) -> None:
        """Turn the sites until something holds; fails loudly if it never does. The clock stands."""
        names = list(self.sites) if sites is None else list(sites)
        for _ in range(turns):
            if reached():
                return
            for group in [[name] for name in names] if one_by_one else [names]:
                self.turn(group)
        raise AssertionError(f"not reached in {turns} turns; run is {self.run()}; rounds are {self._story()}")

    def play(self, number: int, *, sites: Iterable[str] | None = None, run: str = "run") -> Mapping[str, Any]:
        """Turn the sites, and move the clock on whenever they have nothing to do, until a round is over."""
        names = None if sites is None else list(sites)
        before: object = None
        for _ in range(200):
            self.turn(names)
            found = self.round(number, run)
            if found["state"] in ("succeeded", "failed", "cancelled"):
                return found
            who = [(entry["participant"], entry["state"]) for entry in found["participations"]]
            at = found["state"], found["epoch_state"], found["deadline_time"], who
            if at == before:
                self._let_time_pass(found)
            before = at
        raise AssertionError(f"round {number} does not end; {self._story()}")

    def play_with_a_dropout(self, lost: Site, *, run: str = "run") -> Mapping[str, Any]:
        """The first round of a run where one site falls silent once keys are set up: both kinds of share are opened.

        The site's line stays cut.
        """
        lost.line.cut(before="upload")
        others = [name for name in self.sites if self.sites[name] is not lost]
        self.turn_until(lambda: self.state(run) == "running" and lost.line.is_cut)
        self.turn_until(
            lambda: [state for state, _ in self.participations(1, run).values()].count("uploaded") == len(others)
        )
        self.advance(WINDOW + 1)
        return self.play(1, sites=others, run=run)

    def _let_time_pass(self, found: Mapping[str, Any]) -> None:
        """Nobody has anything to do: the next deadline is what goes on. That of a key epoch is never the later one."""
        left = (datetime.fromisoformat(found["deadline_time"]) - self.clock.now()).total_seconds()
        is_setting_up = found["epoch_state"] in ("advertising", "sharing", "confirming")
        self.advance((min(left, WINDOW) if is_setting_up else left) + 0.1)

    def _story(self) -> object:
        return [(r["number"], r["state"], r["reason"], r["message"]) for r in self.admin.rounds("runs/run")]

    # --- runs -----------------------------------------------------------------------------------------------------

    def create_run(
        self,
        run: str = "run",
        *,
        is_started: bool = True,
        member_cas: Mapping[str, str] = MappingProxyType({}),
        **settings: object,
    ) -> None:
        """Under a fresh charter of everybody who is enrolled, and of those whose CAs are given."""
        charter = self.admin.draft_charter(
            participants=(), least_cohort=3, colluders=None, base_model_digests=(), ca_certificates=member_cas
        )
        self.admin.publish_charter(charter["charter_json"])
        self.admin.create_run(run, {**DEFAULTS, "base_model_json": self.model.to_json(), **settings})
        if is_started:
            self.start_run(run)

    def join_all(self, run: str = "run") -> None:
        """Turn all sites until every one has joined a run that has not been started."""
        self.turn_until(lambda: sum(row["joined"] for row in self.run(run)["members"]) == len(self.sites))

    def start_run(self, run: str = "run") -> None:
        self.admin.start_run(f"runs/{run}")
        self.settle()

    def run(self, name: str = "run") -> Mapping[str, Any]:
        return self.admin.run(f"runs/{name}")

    def state(self, name: str = "run") -> str:
        return str(self.run(name)["state"])

    def round(self, number: int, run: str = "run") -> Mapping[str, Any]:
        return self.admin.round(f"runs/{run}/rounds/{number}")

    def participations(self, number: int, run: str = "run") -> dict[str, tuple[str, str]]:
        """State and reason of everybody in a round, by name."""
        rows = self.round(number, run)["participations"]
        return {row["participant"].removeprefix("participants/"): (row["state"], row["reason"]) for row in rows}

    def plan(self, run: str = "run") -> Plan:
        return Plan.from_bytes(_canonical(self.run(run)["plan"]))

    def adapter(self, digest: str, run: str = "run") -> FlatVector:
        """float32[L] of a published adapter, as an operator exports it."""
        path = self.folder / f"exported-{digest}"
        if not path.exists():
            chunks = self.admin.export_adapter(digest, offset=0)
            path.write_bytes(b"".join(chunk for chunk in chunks if isinstance(chunk, bytes)))
        return np.array(open_flat(path, self.plan(run).layout()))

    def adapters(self, run: str = "run") -> list[Mapping[str, Any]]:
        """Newest first."""
        return list(self.admin.adapters(f"runs/{run}"))

    def audit(self, action: str) -> list[Mapping[str, Any]]:
        return [event for event in self.admin.audit_events() if event["action"] == action]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, as Prometheus reads them."""
        assert self.addresses is not None
        with urllib.request.urlopen(f"http://{self.addresses.health_http}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def blobs(self, prefix: str) -> list[str]:
        """Keys below a prefix of the coordinator's blob store."""
        return list(open_blobs(self.config.blobs_url, self.config.s3).keys(prefix))

    def errors(self, number: int, survivors: Collection[str], run: str = "run") -> tuple[FlatVector, float]:
        """How far a round's adapter is from the plaintext weighted mean over `survivors`, and the bound on that.

        The bound is |U3| * C / (L * A) for each element, with float32's rounding on top.
        """
        found = self.round(number, run)
        plan = self.plan(run)
        layout = plan.layout()
        base = self.adapter(found["base_adapter_digest"], run)
        cap = plan.masking.weight_cap
        weights = {name: min(self.sites[name].trainer.records, cap) / cap for name in survivors}
        total = sum(weights.values())
        mean = moving(plan, number) * sum(
            weights[name] / total * self.sites[name].trainer.delta(number, layout).astype(np.float64)
            for name in survivors
        )
        result = self.adapter(found["adapter_digest"], run)
        limit = min(((1 << (64 // plan.masking.lanes)) - 1) // (2 * plan.masking.most_participants), 2**22)
        bound = len(survivors) * plan.masking.element_clip / (limit * total)
        rounding = 8 * float(np.finfo(np.float32).eps) * (float(np.abs(base).max()) + 1.0)
        return np.abs(result - (base + mean)), bound + rounding


async def _end_all_tasks() -> None:
    """What `asyncio.run` does when a coordinator's process ends."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _canonical(plan: object) -> bytes:
    return json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def federation_in(folder: Path, **settings: Any) -> Iterator[Federation]:
    """A federation that has been started, closed at the end of the block."""
    made = Federation(folder, FakeClock(now()), **settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
