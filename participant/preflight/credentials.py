"""Preflight checks of who this site is: the files of its identity, who may read them, and its certificate's life."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from common.errors import AccordError, ClockWrong, NotFound
from participant.identity import IdentityFolder, SiteIdentity, renewal_time
from participant.preflight.report import Result, failed, ok, warning

# The daemon has asked for a new certificate at half of its life; two thirds without one means that nobody answers.
RENEWAL_OVERDUE: Final = 2 / 3

_FOR_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE_FOR_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def identity_files(folder: IdentityFolder) -> Result:
    """Key, certificate and trust bundle are there, belong together, and the key is its owner's alone."""
    try:
        identity = folder.load()
    except NotFound as error:
        return failed(error.message, "ask the federation's operator for a join token, and enroll with it")
    except AccordError as error:
        return failed(error.message, "restore the identity directory from a backup, or enroll again")
    loose = _loose_permissions(folder)
    if loose:
        return failed("; ".join(found for found, _ in loose), " && ".join(command for _, command in loose))
    return ok(f"{identity.enrollment.participant} of {identity.enrollment.federation}, in {folder.path}")


def _loose_permissions(folder: IdentityFolder) -> list[tuple[str, str]]:
    loose: list[tuple[str, str]] = []
    key = folder.key_file.stat()
    if key.st_mode & _FOR_OTHERS:
        loose.append(
            (
                f"others than the owner may use {folder.key_file} ({_mode(folder.key_file)})",
                f"chmod 600 {folder.key_file}",
            )
        )
    if key.st_uid not in (os.getuid(), 0):
        loose.append((f"{folder.key_file} belongs to uid {key.st_uid}", f"chown {os.getuid()} {folder.key_file}"))
    if folder.path.stat().st_mode & _WRITABLE_FOR_OTHERS:
        # Whoever may write the folder may replace the key, whatever the key's own mode is.
        loose.append((f"others may write {folder.path} ({_mode(folder.path)})", f"chmod 700 {folder.path}"))
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
            else "let your PKI issue a new certificate for the same key, and put it into the identity directory",
        )
    said = f"issued by {issuer}, valid until {_time(end)} ({_days(end - now)} left)"
    if now >= begin + (end - begin) * RENEWAL_OVERDUE:
        return warning(
            f"{said}; it should have been renewed since {_time(renewal_time(shown))}",
            "start the daemon, which renews it, and look for certificate_renewal_failed in its log"
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
