"""Exit codes: a promise to scripts and units, so a number never changes its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from common.cli import program
from common.errors import (
    AccordError,
    AuditFailed,
    BaseModelMismatch,
    BaseModelUnavailable,
    CertificateRevoked,
    CharterInvalid,
    ConfigInvalid,
    DataInvalid,
    InvalidArgument,
    JoinTokenInvalid,
    PermissionDenied,
    PolicyRefusal,
    ResourceExhausted,
    StorageFailed,
    Unauthenticated,
    Unavailable,
)


class Exit(IntEnum):
    OK = 0
    FAILED = 1  # anything without a number of its own; also: a check has failed
    USAGE = 2  # argparse's own
    CONFIG = 3  # a file that this site's people wrote has mistakes
    REFUSED = 4  # the coordinator does not accept this site, or its token
    UNAVAILABLE = 5  # try again later
    CONTENT = 6  # base model or data
    STORAGE = 7  # disk full, no permission
    AUDIT = 8  # what a round has published does not follow from what its members sent
    INTERRUPTED = program.INTERRUPTED


MEANINGS: Final = """exit codes:
  0  done                                    4  the coordinator refused this site or its token
  1  failed, or a check has failed           5  not reachable at present; try again
  2  the command line is wrong               6  base model or data cannot be used
  3  configuration, policy or charter wrong  7  disk full or no permission
                                             8  an audit has found something wrong"""

_EXITS: Final[Mapping[type[AccordError], Exit]] = {
    InvalidArgument: Exit.USAGE,
    ConfigInvalid: Exit.CONFIG,
    CharterInvalid: Exit.CONFIG,
    PolicyRefusal: Exit.CONFIG,
    JoinTokenInvalid: Exit.REFUSED,
    Unauthenticated: Exit.REFUSED,
    PermissionDenied: Exit.REFUSED,
    CertificateRevoked: Exit.REFUSED,
    Unavailable: Exit.UNAVAILABLE,
    ResourceExhausted: Exit.UNAVAILABLE,
    BaseModelMismatch: Exit.CONTENT,
    BaseModelUnavailable: Exit.CONTENT,
    DataInvalid: Exit.CONTENT,
    StorageFailed: Exit.STORAGE,
    AuditFailed: Exit.AUDIT,
}


def exit_of(error: AccordError) -> Exit:
    """The code with which a command ends that this error has ended."""
    return next((_EXITS[kind] for kind in type(error).__mro__ if kind in _EXITS), Exit.FAILED)
