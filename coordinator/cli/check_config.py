"""`check-config`: every mistake in a configuration file at once, and what it comes to."""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
    facts = {
        "config": str(path),
        "federation": config.federation,
        "data_folder": str(config.data_folder),
        "database": _without_password(config.database_url),
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
    """What only shows when files and URLs are looked at. A bucket is tried with an object that is deleted again."""
    from coordinator.identity import check_files
    from coordinator.pki import host_name_entries
    from coordinator.store.opening import check_blobs, check_database_url

    found: list[str] = []
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("database.url", lambda: check_database_url(config.database_url)),
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


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rsplit('@', 1)[-1]}"
