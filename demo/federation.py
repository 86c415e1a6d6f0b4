"""A whole federation on this machine: one coordinator and its sites as real processes over mTLS on loopback.

Makes folders, keys, tokens, charter and configuration through the same commands and calls that operators use. The demo,
the benchmarks and the system tests all stand on it. Knows nothing of models and data.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from common.errors import AccordError, Unavailable
from coordinator.services.admin_client import AdminClient, OperatorIdentity

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
LISTENERS: Final = ("participants", "enrollment", "admin", "health_http", "health_grpc")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at present; held open together, so that they are different ones."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class ProcessEnded(AccordError):
    """A process of the federation ended, or did not start; its log has the reason."""

    reason = "PROCESS_ENDED"


@dataclass
class Process:
    """A child process with a log file, in a session of its own so that all of it can be ended."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def require_running(self) -> None:
        """Raises ProcessEnded with the last lines of the log."""
        if not self.is_running:
            code = self.child.returncode if self.child is not None else None
            raise ProcessEnded(f"{self.name} has ended with exit code {code}; {self.log} says:\n{self.last_words()}")

    def last_words(self, lines: int = 12) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL for what does not listen."""
        if self.child is None:
            return
        self._signal(signal.SIGTERM)
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and everything that it has started."""
        if self.child is not None:
            self._signal(signal.SIGKILL)
            self.child.wait()

    def _signal(self, number: int) -> None:
        if self.child is None:
            return
        try:
            os.killpg(self.child.pid, number)
        except ProcessLookupError:
            return


class LocalFederation:
    """One federation below one folder. Use it in a `with` block: at its end no process is left."""

    def __init__(self, folder: Path, *, name: str = "demo") -> None:
        self.folder = folder
        self.name = name
        self.sites: dict[str, Process] = {}
        self.coordinator = Process(
            "coordinator",
            [sys.executable, "-m", "coordinator", "serve", "--config", str(self.coordinator_config)],
            folder / "logs" / "coordinator.log",
        )
        self._admin: AdminClient | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # --- coordinator ----------------------------------------------------------------------------------------------

    @property
    def coordinator_folder(self) -> Path:
        return self.folder / "coordinator"

    @property
    def coordinator_config(self) -> Path:
        return self.coordinator_folder / "coordinator.toml"

    @property
    def coordinator_data(self) -> Path:
        return self.coordinator_folder / "data"

    def prepare_coordinator(self) -> None:
        """Configuration, CA, signing key and an operator's certificate; harmless if they are there."""
        if self.coordinator_config.exists():
            return
        ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        self.coordinator_folder.mkdir(parents=True, exist_ok=True)
        self.coordinator_config.write_text(
            "\n".join(
                [
                    f'federation = "{self.name}"',
                    'data_folder = "data"',
                    *(
                        f'[{name}]\nlisten = "{HOST}:{ports[name]}"\npublic_address = "{HOST}:{ports[name]}"'
                        for name in ("participants", "enrollment")
                    ),
                    f'[admin]\nlisten = "{HOST}:{ports["admin"]}"',
                    f'[health]\nhttp = "{HOST}:{ports["health_http"]}"\ngrpc = "{HOST}:{ports["health_grpc"]}"',
                    f'[certificates]\nhost_names = ["{HOST}"]',
                    "",
                ]
            )
        )
        self.command("coordinator", "init", "--config", str(self.coordinator_config))

    def start_coordinator(self) -> None:
        """Start it and wait until it answers. Raises ProcessEnded."""
        self.coordinator.start()
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            self.coordinator.require_running()
            try:
                self.admin.federation()
            except AccordError:
                # Not there yet; a wrong answer shows again below.
                self._wait_for_change()
                continue
            return
        raise ProcessEnded(f"the coordinator does not answer; its log says:\n{self.coordinator.last_words()}")

    def _wait_for_change(self) -> None:
        time.sleep(0.05)

    @property
    def admin(self) -> AdminClient:
        """The admin API with the operator's certificate that `init` has made."""
        if self._admin is None:
            listeners = json.loads((self.coordinator_data / "listeners.json").read_text())
            self._admin = AdminClient(str(listeners["admin"]), self.operator())
        return self._admin
