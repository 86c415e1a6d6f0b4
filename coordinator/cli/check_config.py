"""`check-config`: every mistake in a configuration file at once, and what it comes to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from common.cli.output import print_json
from common.errors import AccordError, ConfigInvalid
from coordinator.cli.exits import Exit
from coordinator.cli.facts import print_facts
from coordinator.cli.files import find_config
from coordinator.config import Config, PkiMode, load_config


def execute(options: argparse.Namespace) -> Exit:
    path = find_config(options.config)
    config = load_config(path)
    mistakes = _mistakes(config)
    if mistakes:
        raise ConfigInvalid(f"{path} has mistakes:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))
    server, schema = _database(config)
    facts = {
        "config": str(path),
        "federation": config.federation,
        "data_folder": str(config.data_folder),
        "database": _named(config.database_url),
        "database_server": server,
        "database_schema": schema,
        "blobs": config.blobs_url,
        "participants": config.participants.listen,
        "participants_public": config.participants.public_address,
        "enrollment": config.enrollment.listen if config.certificates.mode is PkiMode.OWN else "",
        "enrollment_public": config.enrollment.public_address,
        "admin": config.admin.listen,
        "health_http": config.health.http,
        "health_grpc": config.health.grpc,
        "certificates": config.certificates.mode.value,
        "host_names": list(config.host_names),
    }
    if options.json:
        print_json(facts)
    else:
        print_facts(facts.items())
    return Exit.OK


def _mistakes(config: Config) -> list[str]:
    """What only shows when files, database and bucket are looked at; see the command's help for what is tried."""
    from coordinator.identity import check_files
    from coordinator.pki import host_name_entries
    from coordinator.store.opening import check_blobs

    found: list[str] = []
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("database.url", lambda: _database(config)),
        ("blobs.url", lambda: check_blobs(config.blobs_url, config.s3)),
        ("certificates.host_names", lambda: host_name_entries(config.host_names)),
        ("certificates", lambda: check_files(config)),
    )
    for key, check in checks:
        try:
            check()
        except AccordError as error:
            found.append(f"{key}: {error.message}")
    return found


def _database(config: Config) -> tuple[str, str]:
    """What answers and which schema it has, for people. Raises ConfigInvalid or StorageFailed if it does not answer."""
    from coordinator.store.engine import is_sqlite, place_of
    from coordinator.store.schema import describe, newest_revision

    url = config.database_url
    if is_sqlite(url) and not Path(place_of(url)).exists():
        return "SQLite", "not made yet: `serve` or `migrate` makes it"
    server, revision = describe(url)
    if revision == newest_revision():
        return server, f"{revision}, this version's"
    return server, f"{revision or 'none'}, and this version's is {newest_revision()}: run accord-coordinator migrate"


def _named(url: str) -> str:
    """The database's URL as it may be shown: a password may also stand among its settings."""
    from coordinator.store.engine import is_sqlite, place_of

    return url if is_sqlite(url) else place_of(url)
