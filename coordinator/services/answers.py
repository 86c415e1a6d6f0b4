"""Remembers what a request was answered with, so that its repeat gets the same answer and does nothing again.

A week's answers are remembered: whoever repeats a request does so within minutes, and nobody asks for older ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message

from common.clock import Clock
from common.errors import AlreadyExists, InvalidArgument
from coordinator.store.interface import Reader, Store, Writer

Answer = TypeVar("Answer", bound=Message)

REMEMBERED: Final = timedelta(days=7)
PRUNED_EVERY: Final = timedelta(days=1)

_REQUEST_ID: Final = re.compile(r"[!-~]{1,80}")
_DIGEST_BYTES: Final = 32


class ChangeRequest(Protocol):
    """A request that changes something."""

    @property
    def request_id(self) -> str: ...

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...


class Answers:
    """Runs acts once per caller and request_id. A request without an id is done each time that it is made."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._pruned_at: datetime | None = None

    def recall(self, caller: str, request: ChangeRequest, answer: type[Answer]) -> Answer | None:
        """What the same request was answered with before. Raises AlreadyExists if another one had this id."""
        _check_id(request)
        with self._store.read() as reader:
            return _recall(reader, caller, request, answer)

    def once(
        self,
        caller: str,
        request: ChangeRequest,
        answer: type[Answer],
        act: Callable[[Writer], Answer],
        *,
        keep: Callable[[Answer], Answer] = lambda answer: answer,
    ) -> Answer:
        """Do `act` in one transaction with what is remembered of it, or give the answer of the first time.

        keep: what a repeat may see of the answer; a secret is not stored.
        Raises AlreadyExists if another request had this id, InvalidArgument for a malformed id.
        """
        _check_id(request)
        self._prune()
        with self._store.write() as writer:
            known = _recall(writer, caller, request, answer)
            if known is not None:
                return known
            result = act(writer)
            if request.request_id:
                content = _fingerprint(request) + keep(result).SerializeToString(deterministic=True)
                writer.put_answer(caller, request.request_id, content, at=self._clock.now())
        return result

    def _prune(self) -> None:
        """Forget old answers: before the first request of this process, and then once a day."""
        now = self._clock.now()
        if self._pruned_at is not None and now - self._pruned_at < PRUNED_EVERY:
            return
        with self._store.write() as writer:
            writer.delete_answers(before=now - REMEMBERED)
        self._pruned_at = now


def _check_id(request: ChangeRequest) -> None:
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidArgument("request_id: use 1 to 80 printable characters without spaces, such as a UUID")


def _recall(reader: Reader, caller: str, request: ChangeRequest, answer: type[Answer]) -> Answer | None:
    stored = reader.answer(caller, request.request_id) if request.request_id else None
    if stored is None:
        return None
    if stored[:_DIGEST_BYTES] != _fingerprint(request):
        raise AlreadyExists(f"request_id {request.request_id} was used for another request; take a new one")
    return answer.FromString(stored[_DIGEST_BYTES:])


def _fingerprint(request: ChangeRequest) -> bytes:
    """What makes two requests the same: their type and all of their fields."""
    kind = type(request).__name__.encode()
    return hashlib.sha256(kind + b"\x00" + request.SerializeToString(deterministic=True)).digest()
