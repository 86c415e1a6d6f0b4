"""`serve`: the coordinator itself."""

from __future__ import annotations

import argparse

from common.errors import AccordError
from common.log import configure
from coordinator.cli.exits import Exit
from coordinator.cli.files import find_config
from coordinator.config import load_config


def execute(options: argparse.Namespace) -> Exit:
    config = load_config(find_config(options.config))
    configure(form=config.log.form, level=config.log.level_number)
    from coordinator import app  # after the configuration is known to be right: gRPC and SQL take a second to load

    try:
        app.run(config)
    except* AccordError as group:
        raise _first(group) from None
    return Exit.OK


def _first(group: BaseExceptionGroup[AccordError]) -> AccordError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise RuntimeError("an exception group is never empty")
