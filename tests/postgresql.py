"""A real PostgreSQL server for tests, on loopback, that ends with the process that has started it.

Run by root it becomes another user, because PostgreSQL refuses root. Making a data folder takes seconds, so an empty
one is kept in the project's cache folder and copied.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from demo.ports import HOST, free_ports
from tests.programs import ROOT, debian_program

PACKAGE: Final = "postgresql"
USER: Final = "accord"
PASSWORD: Final = "correct-horse"
START_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.02
NOBODY: Final = "nobody"
# What tests do with it would be slow otherwise; none of them cuts the power.
SETTINGS: Final = ("fsync=off", "full_page_writes=off", "max_connections=100", "log_min_messages=fatal")


@dataclass
class PostgresServer:
    """One server with its own folder. `url` names a database of it, for the role that owns it and its password."""

    folder: Path
    port: int
    settings: Sequence[str] = ()
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@{HOST}:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [word for setting in (*SETTINGS, *self.settings) for word in ("-c", setting)]
        place = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-p", str(self.port), "-h", HOST]
        with (self.folder / "log").open("ab") as log:
            self.child = subprocess.Popen(_as_nobody([str(_program("postgres")), *place, *options]), stderr=log)
        give_up = time.monotonic() + START_SECONDS
        while True:
            if self.child.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL does not start:\n{(self.folder / 'log').read_text()}")
            with contextlib.suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            time.sleep(POLL_SECONDS)

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all sessions at once and in order; SIGQUIT is a crash."""
        if self.child is not None:
            self.child.send_signal(how)
            self.child.wait()
            self.child = None

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement on its own, as the role that tests use."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create(self, name: str = "", *, template: str = "template1") -> str:
        """A new database; its URL."""
        name = name or f"t_{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def cut(self, database: str) -> None:
        """End every session of a database, as a failover does."""
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")


@contextlib.contextmanager
def postgres_server(*settings: str) -> Iterator[PostgresServer]:
    """A server that runs within the block. Skips the test where PostgreSQL is missing."""
    template = _template()
    # Not below pytest's own folder, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="accord-postgresql-"))
    (port,) = free_ports(1)
    server = PostgresServer(folder, port, settings)
    try:
        shutil.copytree(template, folder / "data")
        _give(folder)
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _template() -> Path:
    """An empty data folder of this version of PostgreSQL; made once."""
    program = _program("initdb")
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.split()[2]
    kept = ROOT / ".cache" / f"postgresql-{version}"
    if kept.is_dir():
        return kept
    folder = Path(tempfile.mkdtemp(prefix="accord-postgresql-"))
    try:
        (folder / "password").write_text(f"{PASSWORD}\n")
        _give(folder)
        options = ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", f"--username={USER}", "--auth=scram-sha-256"]
        command = [str(program), *options, f"--pwfile={folder / 'password'}", "-D", str(folder / "data")]
        subprocess.run(_as_nobody(command), check=True, capture_output=True)
        arriving = kept.with_name(f"{kept.name}-{secrets.token_hex(4)}")
        shutil.copytree(folder / "data", arriving)
        try:
            arriving.rename(kept)
        except OSError:  # another worker was faster
            shutil.rmtree(arriving)
    finally:
        shutil.rmtree(folder)
    return kept


def _program(name: str) -> Path:
    return debian_program(name, package=PACKAGE)


def _as_nobody(command: list[str]) -> list[str]:
    """So started that it ends with the thread that starts it, and not as root."""
    words = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        account = pwd.getpwnam(NOBODY)
        words += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return [*words, *command]


def _give(folder: Path) -> None:
    """The folder and all in it to the user that runs PostgreSQL, and to nobody else."""
    folder.chmod(0o700)
    if os.geteuid() == 0:
        account = pwd.getpwnam(NOBODY)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
