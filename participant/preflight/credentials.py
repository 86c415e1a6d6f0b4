"""Preflight checks of who this site is: the files of its identity, who may read them, and its certificate's life."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from common.errors import AccordError, ClockWrong, NotFound
from participant.identity import IdentityFiles, OwnPki, SiteIdentity, renewal_time
from participant.preflight.report import Result, failed, ok, warning

# The daemon has asked for a new certificate at half of its life; two thirds without one means that nobody answers.
RENEWAL_OVERDUE: Final = 2 / 3

_BY_OWN_PKI: Final = "let your PKI write the files that [certificates] names, or name those that it writes"
_FOR_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE_FOR_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def identity_files(files: IdentityFiles) -> Result:
    """Key, certificate and trust bundle are there, belong together, and the key is its owner's alone."""
    has_own_pki = isinstance(files, OwnPki)
    try:
        identity = files.load()
    except NotFound as error:
        ask = "ask the federation's operator for a join token, and enroll with it"
        return failed(error.message, _BY_OWN_PKI if has_own_pki else ask)
    except AccordError as error:
        restore = "restore the identity directory from a backup, or enroll again"
        return failed(error.message, _BY_OWN_PKI if has_own_pki else restore)
    loose = _loose_permissions(files)
    if loose:
        return failed("; ".join(found for found, _ in loose), " && ".join(command for _, command in loose))
    return ok(
        f"{identity.enrollment.participant} of {identity.enrollment.federation}, in {files.certificate_file.parent}"
    )


def _loose_permissions(files: IdentityFiles) -> list[tuple[str, str]]:
    loose: list[tuple[str, str]] = []
    file, folder = files.key_file, files.key_file.parent
    key = file.stat()
    # Root's key, as a mounted Secret is, can be the daemon's by its group alone.
    is_lent = key.st_uid == 0 != os.getuid()
    if key.st_mode & (_FOR_OTHERS & ~stat.S_IRGRP if is_lent else _FOR_OTHERS):
        mode = "640" if is_lent else "600"
        loose.append((f"others than the owner may use {file} ({_mode(file)})", f"chmod {mode} {file}"))
    if key.st_uid not in (os.getuid(), 0):
        loose.append((f"{file} belongs to uid {key.st_uid}", f"chown {os.getuid()} {file}"))
    is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    if folder.stat().st_mode & _WRITABLE_FOR_OTHERS and not is_read_only:
        # Whoever may write the folder may replace the key, whatever the key's own mode is.
        loose.append((f"others may write {folder} ({_mode(folder)})", f"chmod 700 {folder}"))
    return loose


def certificate(identity: SiteIdentity, *, now: datetime) -> Result:
    """The certificate is valid now, and is being renewed in time."""
    shown = identity.certificate
    begin, end = shown.not_valid_before_utc, shown.not_valid_after_utc
    issuer = shown.issuer.rfc4514_string() or "an unnamed CA"
    if now < begin:
        return failed(
            f"the certificate is valid from {_time(begin)} on, and this machine's clock says {_time(now)}",
            "set the clock (timedatectl set-ntp true)",
            kind=ClockWrong,
        )
    if now >= end:
        return failed(
            f"the certificate has expired on {_time(end)}, {_days(now - end)} ago; issued by {issuer}",
            "an expired certificate cannot be renewed: ask for a join token and enroll again (the key stays the same)"
            if identity.enrollment.is_renewed_by_coordinator
            else "let your PKI renew it; the files are read anew, and nothing has to be restarted",
        )
    said = f"issued by {issuer}, valid until {_time(end)} ({_days(end - now)} left)"
    if now >= begin + (end - begin) * RENEWAL_OVERDUE:
        return warning(
            f"{said}; it should have been renewed since {_time(renewal_time(shown))}",
            "start the daemon, which renews it, and look for certificate_not_renewed in its log"
            if identity.enrollment.is_renewed_by_coordinator
            else "let your PKI renew it",
        )
    return ok(said)


def _mode(path: Path) -> str:
    return f"mode {stat.S_IMODE(path.stat().st_mode):04o}"


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _days(span: timedelta) -> str:
    return f"{span.days} days" if span >= timedelta(days=2) else f"{span.total_seconds() / 3600:.0f} hours"
