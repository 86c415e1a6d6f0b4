"""A coordinator that lies: the real one over real mTLS, and it answers as that one does, but for a test's lies.

The liar sits behind the guard, so it knows who calls. It remembers every call, as a coordinator does that means to make
something of it; and it is the real one otherwise, with its store, its keys and its certificate authority.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from structlog.testing import capture_logs

from common.errors import AccordError
from common.rpc.handlers import Context, Handler, behaviour_of, with_behaviour
from common.rpc.identity import current_caller
from common.secagg.messages import Commit, Reveal, Signed
from coordinator.services import listeners
from coordinator.services.listeners import Listener
from participant.metrics import reason_label
from tests.fakes import FakeClock
from tests.rpc.federation import Federation, Site, now
from tests.rpc.lab import Lab, lab_in, open_round

NAMES = [f"site-{index}" for index in range(4)]
VICTIM = NAMES[0]
LATE = NAMES[3]
OPEN_LISTENER = listeners.open_listener


@dataclass(frozen=True)
class Call:
    """What a participant has sent. A stream is a list, which grows as it arrives."""

    method: str
    caller: str
    request: Any


Lie = Callable[[Call, Any], Any]
"""(call, the true answer) -> what is answered. A stream's answer is a list of messages."""
Deaf = Callable[[Call], Any]
"""call -> what is answered without the real coordinator ever hearing of the call."""


class Liar(grpc.aio.ServerInterceptor):
    """What is answered falsely, and to whom; and everything that it was told.

    assigned: the assignment that each caller was last given of each kind, by (caller, task).
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.assigned: dict[tuple[str, str], Any] = {}
        self._lies: dict[tuple[str, str], Lie] = {}
        self._deaf: dict[tuple[str, str], Deaf] = {}
        self._rewritten: dict[tuple[str, str], Callable[[Any], None]] = {}

    def tell(self, method: str, lie: Lie, *, to: Iterable[str]) -> None:
        """From now on these callers get another answer than the true one."""
        self._lies.update({(method, name): lie for name in to})

    def keep(self, method: str, answer: Deaf, *, of: Iterable[str]) -> None:
        """From now on what these callers send with a method stays with the liar."""
        self._deaf.update({(method, name): answer for name in of})

    def rewrite(self, method: str, change: Callable[[Any], None], *, of: Iterable[str]) -> None:
        """From now on the real coordinator hears something else than what these callers send."""
        self._rewritten.update({(method, name): change for name in of})

    def be_honest(self, *methods: str) -> None:
        """No lies any more, or none with these methods."""
        tables: tuple[dict[tuple[str, str], Any], ...] = (self._lies, self._deaf, self._rewritten)
        for table in tables:
            for key in [key for key in table if not methods or key[0] in methods]:
                del table[key]

    def heard(self, method: str, caller: str | None = None, **fields: object) -> list[Any]:
        """Requests of a method, oldest first; only those whose fields are these."""
        return [
            call.request
            for call in self.calls
            if call.method == method
            and caller in (None, call.caller)
            and all(getattr(call.request, name) == value for name, value in fields.items())
        ]

    def uploads(self, caller: str, number: int) -> list[list[Any]]:
        """What a caller has sent with UploadMaskedUpdate for a round, each stream as a list."""
        return [parts for parts in self.heard("UploadMaskedUpdate", caller) if parts[0].header.round == number]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method.rpartition("/")[2]
        if not handler.response_streaming:
            return with_behaviour(handler, partial(self._answer, method, handler))

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            for message in await self._answer(method, handler, request, context):
                yield message

        return with_behaviour(handler, stream)

    async def _answer(self, method: str, handler: Handler, request: Any, context: Context) -> Any:
        call = Call(method, current_caller().id, [] if handler.request_streaming else request)
        self.calls.append(call)
        if handler.request_streaming:
            request = _remembered(request, call.request)
        key = (method, call.caller)
        if key in self._deaf:
            if handler.request_streaming:
                async for _ in request:
                    pass
            return self._deaf[key](call)
        if key in self._rewritten:
            request = copy_of(request)
            self._rewritten[key](request)
        serve: Any = behaviour_of(handler)
        if key in self._lies and "wait_seconds" in request.DESCRIPTOR.fields_by_name:
            request.wait_seconds = 0  # a liar has no need to wait for what is true
        if handler.response_streaming:
            truth: Any = [message async for message in serve(request, context)]
        else:
            truth = await serve(request, context)
        if method == "GetAssignment":
            self.assigned.update({(call.caller, task.WhichOneof("task")): task for task in truth.assignments})
        return self._lies[key](call, truth) if key in self._lies else truth


def copy_of(message: Any) -> Any:
    """A message of one's own to change."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


async def _remembered(requests: AsyncIterator[Any], kept: list[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        kept.append(request)
        yield request


class LyingFederation(Federation):
    """A federation whose coordinator has a liar in front of it."""

    def __init__(self, folder: Path, clock: FakeClock, **settings: Any) -> None:
        self.liar = Liar()
        super().__init__(folder, clock, **settings)

    def start(self) -> None:
        with patch.object(listeners, "open_listener", self._open_listener):
            super().start()

    def _open_listener(self, name: str, address: str, *, interceptors: Any, **settings: Any) -> Listener:
        if name == "participants":
            interceptors = (*interceptors, self.liar)
        return OPEN_LISTENER(name, address, interceptors=interceptors, **settings)


@contextmanager
def lying_federation_in(folder: Path, **settings: Any) -> Iterator[LyingFederation]:
    """A federation that has been started, closed at the end of the block."""
    made = LyingFederation(folder, FakeClock(now()), **settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


# --- lies about assignments --------------------------------------------------------------------------------------


def without(task: str) -> Lie:
    """A lie that does not ask for one kind of thing."""
    return lambda call, truth: type(truth)(
        assignments=[found for found in truth.assignments if found.WhichOneof("task") != task], tag="lie"
    )


def with_task(change: Callable[[Any], None], task: str) -> Lie:
    """A lie about one kind of assignment: `change` writes into its message, as upload_update of the API."""

    def lie(call: Call, truth: Any) -> Any:
        answer = copy_of(truth)
        for assignment in answer.assignments:
            if assignment.WhichOneof("task") == task:
                change(getattr(assignment, task))
        answer.tag = hashlib.sha256(answer.SerializeToString(deterministic=True)).hexdigest()[:32]
        return answer

    return lie


def instead_of_tasks(*assignments: Any) -> Lie:
    """A lie that asks for these things alone, whatever is due."""
    return lambda call, truth: type(truth)(assignments=assignments, tag="lie")


# --- what it could make of what it was told ----------------------------------------------------------------------


@dataclass(frozen=True)
class Loot:
    """All that members have opened in a round, whatever they were told, and the sets that they have committed to.

    self_shares, escrow_shares: who has opened a share of an owner's b[r] and K[r], by the owner's index.
    """

    self_shares: Mapping[int, frozenset[int]]
    escrow_shares: Mapping[int, frozenset[int]]
    commits: Mapping[int, frozenset[tuple[int, ...]]]

    def openable_sums(self, threshold: int) -> list[tuple[int, ...]]:
        """Survivor sets whose sum could be opened: b of those in it, K of the others, `threshold` shares of each."""
        owners = sorted(self.self_shares)
        free = [owner for owner in owners if len(self.self_shares[owner]) >= threshold]
        gone = [owner for owner in owners if len(self.escrow_shares[owner]) >= threshold]
        if set(free) | set(gone) != set(owners):
            return []
        both = [owner for owner in free if owner in gone]
        sure = [owner for owner in free if owner not in gone]
        choices = (itertools.combinations(both, count) for count in range(len(both) + 1))
        sums = (tuple(sorted((*sure, *chosen))) for chosen in itertools.chain.from_iterable(choices))
        return [found for found in sums if found]


def loot(liar: Liar, number: int, cohort: Iterable[int], run: str = "run") -> Loot:
    """What the liar has of a round, from every call that was made to it, refused or not."""
    owners = sorted(cohort)
    selfs: dict[int, set[int]] = {owner: set() for owner in owners}
    escrows: dict[int, set[int]] = {owner: set() for owner in owners}
    for request in liar.heard("RevealShares", run=run, round=number):
        reveal = Reveal.decode(Signed.decode(request.reveal).body)
        assert len(reveal.shares) == len(owners)
        for owner in owners:
            (selfs if owner in reveal.survivors else escrows)[owner].add(reveal.index)
    commits: dict[int, set[tuple[int, ...]]] = {}
    for request in liar.heard("CommitSurvivors", run=run, round=number):
        commit = Commit.decode(Signed.decode(request.commit).body)
        commits.setdefault(commit.index, set()).add(commit.survivors)
    return Loot(
        {owner: frozenset(found) for owner, found in selfs.items()},
        {owner: frozenset(found) for owner, found in escrows.items()},
        {index: frozenset(found) for index, found in commits.items()},
    )


# --- rounds in which it lies, and what a site says to it ----------------------------------------------------------


def lying_lab(*, rounds_per_epoch: int) -> Any:
    """A module's fixture: its cases share federations of which the coordinator lies."""

    @pytest.fixture(scope="module")
    def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
        with lab_in(tmp_path_factory, rounds_per_epoch=rounds_per_epoch, federation_in=lying_federation_in) as made:
            yield made

    return lab


def honest_afterwards(federation: Federation) -> Iterator[LyingFederation]:
    """A fixture's body: the federation, whose open round ends in honesty when the test is over."""
    assert isinstance(federation, LyingFederation)
    yield federation
    honest_end(federation)


def honest_end(federation: LyingFederation) -> str:
    """Tell the truth again to everybody, and play the round to its end; its state."""
    federation.liar.be_honest()
    for site in federation.sites.values():
        site.line.mend()
        site.line.forget()
    return str(federation.play(int(federation.run()["round"]))["state"])


def honest_round(federation: LyingFederation) -> str:
    open_round(federation)
    return honest_end(federation)


def failures(site: Site, kind: type[AccordError]) -> float:
    label = reason_label(kind(""))
    samples = (sample for metric in site.daemon._metrics.failures.collect() for sample in metric.samples)
    return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["reason"] == label)


def assert_refuses(site: Site, kind: type[AccordError], words: str) -> None:
    """The site's next turn ends in this error: one line for its operator, one failure in its metrics."""
    before = failures(site, kind)
    with capture_logs() as lines:
        site.turn()
    said = [(line["reason"], line["message"]) for line in lines if line["event"] == "task_failed"]
    assert [reason for reason, _ in said] == [kind.reason], (said, lines)
    assert words in said[0][1]
    assert failures(site, kind) == before + 1
