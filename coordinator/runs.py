"""What operators do to runs: create, start, pause, resume, cancel, roll back.

Works inside a transaction that the caller has begun; who may ask, and how the answer looks, is the servicer's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.adapters import ADAPTER_FILE, FlatFile
from common.charter import Charter
from common.errors import AlreadyExists, NotFound, OutOfTurn, PlanInvalid, ShapeMismatch, StorageFailed
from common.identifiers import adapter_name, parse_digest, run_name
from common.plan import Beneath, Plan
from common.states import RunState
from coordinator.domain_planning import beneath_of
from coordinator.manifests import build_manifest, public_key_hex, sign_manifest
from coordinator.planning import PlanSettings, RunIdentity, make_plan
from coordinator.rounds.events import RoundCancelled, RunCancelled, RunEvent, RunRolledBack
from coordinator.rounds.lifecycle import advance_round, advance_run
from coordinator.rounds.model import Adapter, AdapterState, Round, Run
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Reader, Writer

RandomBytes = Callable[[int], bytes]
RUN_ID_BYTES: Final = 32
CHECKED_AT_ONCE: Final = 1 << 20  # elements


def adapter_key(digest: str) -> str:
    """Where an adapter's model file lies in the blob store."""
    return f"adapters/{digest}"


def import_key(digest: str) -> str:
    """Where an imported adapter lies until a run begins from it."""
    return f"imports/{digest}"


def optimizer_prefix(run: str) -> str:
    """Below it lies all state of a run's server optimiser."""
    return f"optimizer/{run}"


def optimizer_state_key(run: str, digest: str, name: str) -> str:
    """Where a vector of the server optimiser's state lies that belongs to an adapter of a run."""
    return f"{optimizer_prefix(run)}/{digest}/{name}"


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that is ready to be recorded; its initial adapter's file is in the blob store already."""

    run: Run
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class RunFactory:
    """Makes runs: plan, initial adapter and its manifest. `scratch`: a folder on local disk.

    most_upload_bytes: largest masked update that the coordinator takes.
    """

    federation: str
    signing_key: Ed25519PrivateKey = field(repr=False)
    blobs: BlobStore
    scratch: Path
    random: RandomBytes = field(repr=False)
    most_upload_bytes: int

    def make(
        self, name: str, settings: PlanSettings, charter: Charter, *, at: datetime, beneath: Beneath | None = None
    ) -> NewRun:
        """Raises PlanInvalid that lists every mistake, StorageFailed if the adapter cannot be stored."""
        identity = RunIdentity(
            run=name,
            run_id=self.random(RUN_ID_BYTES).hex(),
            federation=self.federation,
            coordinator_public_key=public_key_hex(self.signing_key),
        )
        plan = make_plan(
            settings, identity=identity, charter=charter, most_upload_bytes=self.most_upload_bytes, beneath=beneath
        )
        content = plan.to_bytes()
        plan_digest = hashlib.sha256(content).hexdigest()
        digest, size_bytes = self._store_initial_adapter(plan, imported=settings.initial_adapter)
        manifest = build_manifest(
            plan,
            plan_digest=plan_digest,
            round_number=0,
            digest=digest,
            parent=None,
            survivors=(),
            metrics=(),
            instruction_set=plan.instruction_set,
            at=at,
        )
        signed = sign_manifest(manifest, self.signing_key)
        return NewRun(
            run=Run(
                name=name,
                state=RunState.CREATED,
                plan=content,
                plan_digest=plan_digest,
                charter_digest=plan.charter_digest,
                accepted_adapter=digest,
                candidate_adapter=None,
                created_at=at,
            ),
            adapter=Adapter(
                digest=digest,
                run=name,
                round=0,
                state=AdapterState.ACCEPTED,
                size_bytes=size_bytes,
                parent=None,
                manifest=signed.content,
                manifest_signature=signed.signature,
                created_at=at,
            ),
        )

    def _store_initial_adapter(self, plan: Plan, *, imported: str) -> tuple[str, int]:
        """Digest and size of the adapter from which the first round trains. imported: its digest, "" for a new one."""
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="initial-adapter-", dir=self.scratch))
        except OSError as error:
            raise StorageFailed(f"cannot write to {self.scratch}: {error.strerror}") from error
        try:
            file = folder / ADAPTER_FILE
            if imported:
                digest = str(parse_digest(imported, field="initial_adapter"))
                self._fetch_imported(digest, file, plan)
            else:
                digest = _write_adapter(file, plan, seed=initial_seed(plan))
            size_bytes = file.stat().st_size
            self.blobs.put_file(adapter_key(digest), file)
        except OSError as error:
            raise StorageFailed(f"cannot write to {folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return digest, size_bytes

    def _fetch_imported(self, digest: str, file: Path, plan: Plan) -> None:
        """Raises NotFound for one that was not imported, PlanInvalid for one that does not fit the plan."""
        try:
            self.blobs.fetch(import_key(digest), file)
        except NotFound as error:
            raise NotFound(
                f"initial_adapter: no adapter {digest} was imported; `accord-coordinator adapter import FILE` does it"
            ) from error
        try:
            found = FlatFile.open(file, plan.layout())
        except ShapeMismatch as error:
            raise PlanInvalid(
                f"initial_adapter: adapter {digest[:12]} is not of method {plan.method.name} with this rank, these "
                "heads and these target_modules of this base model"
            ) from error
        for start in range(0, found.parameters, CHECKED_AT_ONCE):
            if not np.isfinite(found.read(start, min(start + CHECKED_AT_ONCE, found.parameters))).all():
                raise PlanInvalid(f"initial_adapter: adapter {digest[:12]} holds a NaN or an infinity")


def require_own(reader: Reader, digest: str) -> None:
    """Raises AlreadyExists for an adapter that belongs to a run: it has a place in that run's chain of manifests."""
    try:
        owner = reader.adapter(digest).run
    except NotFound:
        return
    raise AlreadyExists(
        f"{adapter_name(digest)} belongs to {run_name(owner)}; write and import another one, with another seed"
    )


def beneath(reader: Reader, digest: str) -> Beneath:
    """The published adapter on which a domain adapter is to be trained. Raises NotFound or PlanInvalid."""
    found = reader.adapter(parse_digest(digest, field="beneath_adapter"))
    return beneath_of(found, reader.run(found.run))


def initial_seed(plan: Plan) -> int:
    """Seed of a run's initial adapter.

    An adapter is named by its digest and belongs to one run, so two runs of one seed must not begin with the same
    bytes: the run's name is part of the seed.
    """
    return int.from_bytes(hashlib.sha256(f"accord/initial/{plan.training.seed}/{plan.run}".encode()).digest()[:16])


def record(writer: Writer, new: NewRun) -> None:
    """Raises AlreadyExists if there is a run of that name."""
    writer.add_run(new.run)
    writer.add_adapter(new.adapter)


def require_new(reader: Reader, name: str) -> None:
    """Raises AlreadyExists if there is a run of that name."""
    try:
        reader.run(name)
    except NotFound:
        return
    raise AlreadyExists(f"{run_name(name)} exists; choose another run_id, a run's plan never changes")


def change(writer: Writer, name: str, event: RunEvent) -> Run:
    """Apply an operator's event. Raises NotFound, or TransitionNotAllowed from a state that has no such step."""
    run = advance_run(writer.run(name), event)
    writer.update_run(run)
    return run


def cancel(writer: Writer, name: str, *, at: datetime, message: str) -> Run:
    """End a run and its open round; what was published stays. The driver clears up what else there is."""
    run = change(writer, name, RunCancelled(at, message))
    open_round = _open_round(writer, run)
    if open_round is not None:
        writer.update_round(advance_round(open_round, RoundCancelled(at, message)))
    return run


def roll_back(writer: Writer, name: str, digest: str, *, at: datetime) -> Run:
    """Make an earlier accepted adapter the one from which the next round trains; a candidate is set aside.

    Raises NotFound for an adapter that the run has not published, OutOfTurn while a round is open or for an adapter
    that was not accepted, TransitionNotAllowed unless the run is created or paused.
    """
    run = writer.run(name)
    adapter = writer.adapter(digest)
    if adapter.run != run.name:
        raise OutOfTurn(f"{adapter_name(digest)} belongs to {run_name(adapter.run)}, not to {run_name(name)}")
    if adapter.state is not AdapterState.ACCEPTED:
        raise OutOfTurn(
            f"{adapter_name(digest)} is {adapter.state.value}; only an accepted adapter can be gone back to"
        )
    after = advance_run(run, RunRolledBack(at, digest, adapter.heldout_loss))
    open_round = _open_round(writer, run)
    if open_round is not None:
        raise OutOfTurn(f"{open_round.name} is {open_round.state.value}; wait for its end, the run begins no other")
    if run.candidate_adapter is not None:
        writer.set_adapter_state(run.candidate_adapter, AdapterState.SET_ASIDE, heldout_loss=None)
    writer.update_run(after)
    return after


def adapter_of_round(reader: Reader, name: str, number: int) -> str:
    """Digest of the adapter that a round of the run has made; 0 is the initial one. Raises NotFound."""
    rows = reader.adapters(name).rows
    found = next((row.digest for row in rows if row.round == number), None)
    if found is None:
        made = ", ".join(str(row.round) for row in reversed(rows))
        raise NotFound(f"round {number} of {run_name(name)} has made no adapter; there are those of rounds {made}")
    return found


def _open_round(reader: Reader, run: Run) -> Round | None:
    if run.latest_round == 0:
        return None
    newest = reader.round(run.name, run.latest_round)
    return None if newest.state.is_over else newest


def _write_adapter(path: Path, plan: Plan, *, seed: int) -> str:
    """Write an adapter file tensor by tensor, so that memory does not grow with its size. Returns its digest."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = plan.layout().header()
        digest.update(header)
        file.write(header)
        for _, tensor in plan.adapter_method().initial(plan.base_model.layers, seed=seed):
            content = tensor.astype("<f4", copy=False).tobytes()
            digest.update(content)
            file.write(content)
    return digest.hexdigest()
