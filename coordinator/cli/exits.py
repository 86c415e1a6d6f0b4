"""Exit codes: a promise to scripts and units, so a number never changes its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from common.cli import program
from common.errors import (
    AccordError,
    AlreadyExists,
    CertificateRevoked,
    CharterInvalid,
    ConfigInvalid,
    DigestMismatch,
    InvalidArgument,
    NotFound,
    OutOfTurn,
    PermissionDenied,
    PlanInvalid,
    ResourceExhausted,
    SignatureInvalid,
    StorageFailed,
    TransitionNotAllowed,
    Unauthenticated,
    Unavailable,
)


class Exit(IntEnum):
    OK = 0
    FAILED = 1  # anything without a number of its own; also: a check has failed
    USAGE = 2  # argparse's own, and an argument that the coordinator cannot read
    CONFIG = 3  # configuration, charter or plan has mistakes
    REFUSED = 4  # not allowed, or not in this state
    UNAVAILABLE = 5  # try again later
    NOT_FOUND = 6
    STORAGE = 7  # disk full, no permission
    INTERRUPTED = program.INTERRUPTED


MEANINGS: Final = """exit codes:
  0  done                                     4  refused: not allowed, or not in this state
  1  failed, or a check has failed            5  not reachable at present; try again
  2  the command line is wrong                6  there is no such thing
  3  configuration, charter or plan is wrong  7  disk full, no permission, or another schema"""

_EXITS: Final[Mapping[type[AccordError], Exit]] = {
    InvalidArgument: Exit.USAGE,
    ConfigInvalid: Exit.CONFIG,
    CharterInvalid: Exit.CONFIG,
    PlanInvalid: Exit.CONFIG,
    AlreadyExists: Exit.REFUSED,
    TransitionNotAllowed: Exit.REFUSED,
    OutOfTurn: Exit.REFUSED,
    Unauthenticated: Exit.REFUSED,
    PermissionDenied: Exit.REFUSED,
    CertificateRevoked: Exit.REFUSED,
    Unavailable: Exit.UNAVAILABLE,
    ResourceExhausted: Exit.UNAVAILABLE,
    NotFound: Exit.NOT_FOUND,
    StorageFailed: Exit.STORAGE,
    DigestMismatch: Exit.FAILED,
    SignatureInvalid: Exit.FAILED,
}


def exit_of(error: AccordError) -> Exit:
    """The code with which a command ends that this error has ended."""
    return next((_EXITS[kind] for kind in type(error).__mro__ if kind in _EXITS), Exit.FAILED)
