"""What AdminService answers to readers, for those in this process who are not on its listener: the web page.

The same calls, the same rules, the same answers, as the plain values of `admin_client`. Nothing is computed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast

from google.protobuf.message import Message

from accord.v1 import admin_pb2 as pb
from accord.v1 import resources_pb2
from common.rpc.handlers import Context
from common.rpc.identity import Caller
from common.rpc.interceptors import OnAnswered, Rules, check_rule
from coordinator.services.admin import AdminServicer
from coordinator.services.admin_client import Plain, plain

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

# Calls share the process's threads with the driver and the participants' calls, which must not wait for readers.
CALLS_AT_ONCE: Final = 2
PAGE: Final = 200
# Reading calls look at their request alone.
_NO_CONTEXT: Final = cast("Context", None)


class AdminReads:
    """Answers of the admin calls that only read. Each raises PermissionDenied unless the caller's role may make it."""

    def __init__(self, admin: AdminServicer, rules: Rules, on_answered: OnAnswered) -> None:
        self._admin = admin
        self._rules = rules
        self._on_answered = on_answered
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)

    async def federation(self, caller: Caller) -> Plain:
        return await self._ask(caller, self._admin.GetFederation, pb.GetFederationRequest())

    async def runs(self, caller: Caller, *, states: tuple[str, ...] = (), size: int, token: str = "") -> Plain:
        """`runs`, newest first, and `next_page_token`."""
        numbers = [resources_pb2.RunState.Value(f"RUN_STATE_{state.upper()}") for state in states]
        request = pb.ListRunsRequest(page_size=size, page_token=token, states=numbers)
        return await self._ask(caller, self._admin.ListRuns, request)

    async def run(self, caller: Caller, name: str) -> Plain:
        return _only(await self._ask(caller, self._admin.GetRun, pb.GetRunRequest(name=name)), "run")

    async def explain(self, caller: Caller, run: str) -> Plain:
        """Whom or what a run waits for now, who is out, and what to do about each."""
        return await self._ask(caller, self._admin.ExplainRun, pb.ExplainRunRequest(name=run))

    async def rounds(self, caller: Caller, run: str, *, size: int, token: str = "") -> Plain:
        """`rounds` without the names in them, newest first, and `next_page_token`."""
        basic = resources_pb2.ROUND_VIEW_BASIC
        request = pb.ListRoundsRequest(run=run, page_size=size, page_token=token, view=basic)
        return await self._ask(caller, self._admin.ListRounds, request)

    async def round(self, caller: Caller, name: str) -> Plain:
        return _only(await self._ask(caller, self._admin.GetRound, pb.GetRoundRequest(name=name)), "round")

    async def adapters(self, caller: Caller, run: str, *, size: int, token: str = "") -> Plain:
        """`adapters`, newest first, and `next_page_token`."""
        request = pb.ListAdaptersRequest(run=run, page_size=size, page_token=token)
        return await self._ask(caller, self._admin.ListAdapters, request)

    async def participants(self, caller: Caller) -> tuple[Plain, ...]:
        """All of them, by name."""
        found: list[Plain] = []
        token = ""
        while True:
            request = pb.ListParticipantsRequest(page_size=PAGE, page_token=token)
            answer = await self._ask(caller, self._admin.ListParticipants, request)
            found += cast("list[Plain]", answer["participants"])
            token = str(answer["next_page_token"])
            if not token:
                return tuple(found)

    async def participant(self, caller: Caller, name: str) -> Plain:
        request = pb.GetParticipantRequest(name=name)
        return _only(await self._ask(caller, self._admin.GetParticipant, request), "participant")

    async def join_tokens(self, caller: Caller, *, size: int) -> Plain:
        """`join_tokens`, newest first."""
        return await self._ask(caller, self._admin.ListJoinTokens, pb.ListJoinTokensRequest(page_size=size))

    async def audit_events(
        self, caller: Caller, *, subject: str = "", actor: str = "", action: str = "", size: int, token: str = ""
    ) -> Plain:
        """`events`, newest first, of one resource, actor or action or of all, and `next_page_token`."""
        request = pb.ListAuditEventsRequest(
            page_size=size, page_token=token, subject=subject, actor=actor, action=action, newest_first=True
        )
        return await self._ask(caller, self._admin.ListAuditEvents, request)

    async def verify_audit_log(self, caller: Caller) -> Plain:
        return await self._ask(caller, self._admin.VerifyAuditLog, pb.VerifyAuditLogRequest())

    async def _ask(
        self, caller: Caller, call: Callable[[Request, Context], Awaitable[Response]], request: Request
    ) -> Plain:
        method = f"accord.v1.AdminService/{call.__name__}"
        check_rule(self._rules, method, caller)
        async with self._room:
            answer = await call(request, _NO_CONTEXT)
            self._on_answered(method, caller)
            return await asyncio.to_thread(plain, answer)


def _only(answer: Plain, name: str) -> Plain:
    return cast("Plain", answer[name])
