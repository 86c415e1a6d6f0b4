"""A whole federation on this machine: one coordinator and its sites as real processes over mTLS on loopback.

Makes folders, keys, tokens, charter and configuration through the same commands and calls that operators use. The demo,
the benchmarks and the system tests all stand on it. Knows nothing of models and data.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from common.errors import AccordError
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY
from coordinator.services.admin_client import AdminClient, OperatorIdentity
from demo.ports import HOST, free_ports

START_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
TOKEN_SECONDS: Final = 3600
OPERATOR: Final = "admin"
STOP_SECONDS: Final = 20.0
LEASH: Final = Path(__file__).with_name("leash.py")
LISTENERS: Final = ("participants", "enrollment", "admin", "health_http", "health_grpc")


def leashed(command: Sequence[str]) -> list[str]:
    """The command, so started that it dies with this process.

    The kernel watches the thread that starts it, not the process: from any other than the main thread the command
    stays as it is, or it would die with that thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return list(command)
    return [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *command]


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
                leashed(self.command),
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

    def terminate(self) -> None:
        """Ask it to end; `stop` waits for that."""
        self._signal(signal.SIGTERM)

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL for what does not listen."""
        if self.child is None:
            return
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(seconds)
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


@dataclass(frozen=True, slots=True)
class Call:
    """One use of one of the two command lines. text: for its standard input; a join token, so nothing to be shown."""

    module: str
    arguments: tuple[str, ...]
    text: str = field(default="", repr=False)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; what it says is kept for `output_of`."""
        pipe = subprocess.PIPE
        command = leashed([sys.executable, "-m", self.module, *self.arguments])
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        if child.stdin is not None:
            # Nobody may wait for another one's turn to be heard.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(self.text.encode())
                child.stdin.close()
            child.stdin = None
        return child

    def output_of(self, child: subprocess.Popen[bytes]) -> str:
        """Wait for its end. Raises ProcessEnded with what it said."""
        output, errors = child.communicate()
        if child.returncode != 0:
            said = (errors or output).decode(errors="replace").strip()
            what = " ".join((self.module, *self.arguments[:2]))
            raise ProcessEnded(f"{what} failed with exit code {child.returncode}:\n{said}")
        return output.decode()


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
        self.command("coordinator", "init", "--config", str(self.coordinator_config), "--operator", OPERATOR)

    def start_coordinator(self) -> None:
        """Start it and wait until it answers. Raises ProcessEnded."""
        self.coordinator.start()
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            self.coordinator.require_running()
            try:
                self.admin.federation()
            except (AccordError, OSError, ValueError):
                # Not listening yet, or its list of listeners is not written yet.
                time.sleep(POLL_SECONDS)
                continue
            return
        raise ProcessEnded(f"the coordinator does not answer; its log says:\n{self.coordinator.last_words()}")

    @property
    def admin(self) -> AdminClient:
        """The admin API with the operator's certificate that `init` has made; closed with the federation."""
        if self._admin is None:
            listen = tomllib.loads(self.coordinator_config.read_text())["admin"]["listen"]
            folder = self.operator_folder
            identity = OperatorIdentity(
                (folder / OPERATOR_CERTIFICATE).read_bytes(),
                (folder / OPERATOR_KEY).read_bytes(),
                (folder / OPERATOR_CA).read_bytes(),
            )
            self._admin = AdminClient(str(listen), identity)
        return self._admin

    @property
    def operator_folder(self) -> Path:
        """Certificate, key and CA of the operator, as grpcurl takes them."""
        return self.coordinator_data / "operators" / OPERATOR

    # --- sites ----------------------------------------------------------------------------------------------------

    def site_folder(self, site: str) -> Path:
        return self.folder / "sites" / site

    def site_config(self, site: str) -> Path:
        return self.site_folder(site) / "participant.toml"

    def enroll(self, *sites: str) -> None:
        """Exchange a fresh join token for each site's certificate, at the same time; harmless where there is one."""
        calls: list[Call] = []
        for site in sites:
            if (self.site_folder(site) / "state" / "identity" / "enrollment.json").exists():
                continue
            token = str(self.admin.create_join_token(site, ttl_seconds=TOKEN_SECONDS)["token"])
            words = ("enroll", "--config", str(self.site_config(site)), "--token-file", "-")
            calls.append(Call("participant", words, text=token))
        self.commands(calls)

    def publish_charter(
        self,
        sites: Sequence[str],
        *,
        base_model_digests: Sequence[str] = (),
        colluders: int | None = None,
        bounds: Mapping[str, object] | None = None,
    ) -> str:
        """Draft a charter of these sites, publish it, and return its digest, which each of them is to pin.

        bounds: of plans, where others than the usual are wanted.
        """
        drafted = self.admin.draft_charter(
            participants=tuple(sites),
            least_cohort=3,
            colluders=colluders,
            base_model_digests=tuple(base_model_digests),
        )
        charter = json.loads(str(drafted["charter_json"]))
        charter["bounds"] |= bounds or {}
        return str(self.admin.publish_charter(json.dumps(charter))["digest"])

    def pin_charter(self, site: str, digest: str) -> None:
        """Write the site's own copy of the charter where its configuration names it."""
        config = str(self.site_config(site))
        self.command("participant", "charter", "pin", "--config", config, "--digest", digest)

    def start_site(self, site: str, command: Sequence[str] = ()) -> Process:
        """Start the site's daemon. command: another program in its place, for benchmarks and tests."""
        config = str(self.site_config(site))
        words = [*command, config] if command else [sys.executable, "-m", "participant", "run", "--config", config]
        process = Process(site, words, self.folder / "logs" / f"{site}.log")
        process.start()
        self.sites[site] = process
        return process

    # --- all of it ------------------------------------------------------------------------------------------------

    def command(self, module: str, *arguments: str, text: str = "") -> str:
        """Run one of the two command lines to its end and return its output. Raises ProcessEnded with what it said."""
        return self.commands([Call(module, arguments, text=text)])[0]

    def commands(self, calls: Sequence[Call]) -> list[str]:
        """The same for several at once. None of them is left when this returns or raises."""
        running: list[subprocess.Popen[bytes]] = []
        try:
            running.extend(call.start() for call in calls)
            return [call.output_of(child) for call, child in zip(calls, running, strict=True)]
        finally:
            for child in running:
                if child.poll() is None:
                    child.kill()
                    child.wait()

    def require_running(self) -> None:
        """Raises ProcessEnded if any process has ended, with its last words."""
        for process in (self.coordinator, *self.sites.values()):
            process.require_running()

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """End every process, sites first; harmless when none runs. seconds: until SIGKILL, for all of them together."""
        give_up = time.monotonic() + seconds
        for process in self.sites.values():
            process.terminate()
        for process in self.sites.values():
            process.stop(seconds=max(0.0, give_up - time.monotonic()))
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        self.coordinator.stop(seconds=max(1.0, give_up - time.monotonic()))
