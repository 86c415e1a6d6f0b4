"""What a service tells the manager that has started it: systemd's notification protocol, sd_notify(3).

One datagram a message to the socket that the environment names; without one, nothing is sent. There is no thread here
that says "alive" on behalf of a program that hangs: who calls `alive` has just got on with its work. Knows neither
service.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

from common.log import get_logger

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE: Final = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE: Final = "WATCHDOG_PID"
# A chunk of an upload may be sent every few milliseconds; the manager need not hear of each.
MESSAGES_PER_WATCHDOG: Final = 10

# A manager that does not listen must not hold up the work; it has room for some messages that it has not read.
SEND_SECONDS: Final = 5.0

_MICROSECONDS: Final = 1_000_000

log = get_logger(__name__)


class ServiceManager:
    """The manager's ear. Methods are for any thread and never raise: an unheard word costs a restart at most.

    watchdog_seconds: how long the service may be silent before it is killed and started again; None: for ever.
    """

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_seconds: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """address: path of the socket; one that begins with "@" is in Linux's abstract name space. "": nobody hears."""
        # "@" stands for the zero byte that begins an abstract name.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_seconds = watchdog_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._alive_at: float | None = None
        self._status = ""
        self._is_ready = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """As the manager says; its variables are taken out, because they are not for the processes that we start."""
        address = environment.pop(SOCKET_VARIABLE, "")
        microseconds = environment.pop(WATCHDOG_VARIABLE, "")
        process = environment.pop(WATCHDOG_PID_VARIABLE, "")
        is_ours = process in ("", str(os.getpid()))
        watchdog = int(microseconds) / _MICROSECONDS if microseconds.isdigit() and is_ours else None
        return cls(address, watchdog_seconds=watchdog or None)

    @property
    def watchdog_seconds(self) -> float | None:
        """The longest silence that the unit allows; None if nobody watches."""
        return self._watchdog_seconds

    def ready(self, status: str) -> None:
        """The service does its work from now on; said once until `reloading`."""
        if not self._is_ready:
            self._is_ready = True
            self._status = _line(status)
            self._send("READY=1", f"STATUS={self._status}")

    def status(self, text: str) -> None:
        """One line on what is going on, for `systemctl status`."""
        if (line := _line(text)) != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def reloading(self) -> None:
        """The configuration is read again; `ready` follows."""
        self._is_ready = False
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the configuration again")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """The work has just got on. Call it from the work itself, as often as you like."""
        if self._watchdog_seconds is None:
            return
        now = self._monotonic()
        with self._lock:
            if self._alive_at is not None and now - self._alive_at < self._watchdog_seconds / MESSAGES_PER_WATCHDOG:
                return
            self._alive_at = now
        self._send("WATCHDOG=1")

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """The block may be silent for so long: a step that cannot say that it gets on. After it the old bound holds."""
        if self._watchdog_seconds is None or seconds <= self._watchdog_seconds:
            yield
            return
        self._allow(seconds)
        try:
            yield
        finally:
            self._allow(self._watchdog_seconds)

    def _allow(self, seconds: float) -> None:
        self._send(f"WATCHDOG_USEC={int(seconds * _MICROSECONDS)}", "WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            log.warning("service_manager_not_told", error=str(error))


def _line(text: str) -> str:
    return " ".join(text.split())
