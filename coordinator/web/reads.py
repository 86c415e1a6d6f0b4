"""What the web page asks of the federation: the admin calls that only read, as plain values.

Values are dictionaries with the API's field names: times as RFC 3339 text or None, states as short words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from common.rpc.identity import Caller

Plain = Mapping[str, Any]


class Reads(Protocol):
    """Each raises PermissionDenied unless the caller's role may make the admin call of that name."""

    async def federation(self, caller: Caller) -> Plain: ...

    async def runs(self, caller: Caller, *, states: tuple[str, ...] = (), size: int, token: str = "") -> Plain: ...

    async def run(self, caller: Caller, name: str) -> Plain: ...

    async def explain(self, caller: Caller, run: str) -> Plain: ...

    async def rounds(self, caller: Caller, run: str, *, size: int, token: str = "") -> Plain: ...

    async def round(self, caller: Caller, name: str) -> Plain: ...

    async def adapters(self, caller: Caller, run: str, *, size: int, token: str = "") -> Plain: ...

    async def participants(self, caller: Caller) -> tuple[Plain, ...]: ...

    async def participant(self, caller: Caller, name: str) -> Plain: ...

    async def join_tokens(self, caller: Caller, *, size: int) -> Plain: ...

    async def audit_events(
        self, caller: Caller, *, subject: str = "", actor: str = "", action: str = "", size: int, token: str = ""
    ) -> Plain: ...

    async def verify_audit_log(self, caller: Caller) -> Plain: ...
