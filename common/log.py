"""Logging of both services: structlog, one event name and fields per line, as JSON or for a person's eyes.

Configured once by a composition root, never at import. Context that belongs to one RPC or one step is bound for its
length with `bound`. What goes into a field is the caller's care: no tensor, key, share, token or training text.
"""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from enum import Enum
from typing import TextIO

import structlog


class LogForm(Enum):
    """How a line looks: JSON for machines, console for people."""

    JSON = "json"
    CONSOLE = "console"


def configure(*, form: LogForm, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's lines through one chain to `stream` (default: stderr)."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # a test or a command may configure again
    )
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # Libraries log through the standard library: their lines get the same fields and the same form.
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(form, target)],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one module: `log = get_logger(__name__)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bound(**fields: str | int | None) -> AbstractContextManager[None]:
    """Every line inside the `with` block carries these fields, in this task and the threads that it starts."""
    return structlog.contextvars.bound_contextvars(**fields)


def _renderers(form: LogForm, stream: TextIO) -> list[structlog.typing.Processor]:
    if form is LogForm.CONSOLE:
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    # Tracebacks as one field: a line stays a line for whoever collects it.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=True)]
