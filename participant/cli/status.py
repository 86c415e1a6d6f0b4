"""`accord-participant status`: what this site is and has done, from its own files alone."""

from __future__ import annotations

import argparse
import fcntl
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from common.cli.output import print_json, print_table, print_text
from common.clock import SystemClock
from common.errors import AccordError, StorageFailed
from participant.cli.exits import Exit
from participant.config import load_unpinned_config
from participant.contact import ContactState, read_contact
from participant.identity import IdentityFolder, SiteIdentity
from participant.journal import Journal, RoundEntry, RunEntry, RunStanding
from participant.update import ClipReport

_SHOWN_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run with this site's latest rounds of it, newest first."""

    run: RunEntry
    rounds: tuple[RoundEntry, ...]


def execute(options: argparse.Namespace) -> Exit:
    """Print identity and journal. FAILED if the site is not enrolled: then there is nothing else to tell."""
    config = load_unpinned_config(options.config)
    try:
        identity: SiteIdentity | None = IdentityFolder(config.identity_directory).load()
        problem = ""
    except AccordError as error:
        identity, problem = None, error.message
    runs = _runs(config.journal_file)
    now = SystemClock().now()
    is_running = _is_locked(config.lock_file)
    # What a daemon that has ended once wrote is of no interest.
    contact = read_contact(config.state_directory) if is_running else None
    if options.json:
        print_json(
            {
                "identity": _identity_json(identity, problem, now),
                "daemon_is_running": is_running,
                "contact": asdict(contact) if contact is not None else None,
                "runs": [_run_json(entry) for entry in runs],
            }
        )
    else:
        _print(identity, problem, now)
        print_text("the daemon is running" if is_running else "the daemon is not running")
        _print_contact(contact)
        _print_runs(runs)
    return Exit.OK if identity is not None else Exit.FAILED


def _runs(file: Path) -> tuple[RunStatus, ...]:
    # Opening a journal makes one, and looking must not.
    if not file.exists():
        return ()
    journal = Journal(file)
    try:
        return tuple(RunStatus(run, journal.rounds(run.run)[:_SHOWN_ROUNDS]) for run in journal.runs())
    finally:
        journal.close()


def _is_locked(file: Path) -> bool:
    """Whether a daemon holds its lock on the state directory."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StorageFailed(f"cannot look at {file}: {error.strerror}") from error
    return False


# --- JSON ----------------------------------------------------------------------------------------------------------


def _identity_json(identity: SiteIdentity | None, problem: str, now: datetime) -> dict[str, object]:
    if identity is None:
        return {"is_enrolled": False, "problem": problem}
    return {
        "is_enrolled": True,
        "federation": identity.federation,
        "participant": identity.participant,
        "coordinator_address": identity.coordinator_address,
        "certificate_expire_time": identity.expires_at.isoformat(),
        "certificate_is_valid": now < identity.expires_at,
    }


def _run_json(status: RunStatus) -> dict[str, object]:
    run = status.run
    return {
        "run": run.run,
        "standing": run.standing.value,
        "plan_digest": run.plan_digest,
        "reason": run.reason,
        "message": run.message,
        "update_time": run.updated_at.isoformat(),
        "rounds": [
            {
                "round": entry.round,
                "kind": entry.kind,
                "phase": entry.phase.value,
                "outcome": entry.outcome,
                "adapter_digest": entry.adapter,
                "uploaded_bytes": entry.uploaded_bytes,
                "clipping": json.loads(entry.clipping) if entry.clipping else None,
                "reason": entry.reason,
                "message": entry.message,
                "start_time": entry.started_at.isoformat(),
                "update_time": entry.updated_at.isoformat(),
            }
            for entry in status.rounds
        ],
    }


# --- text ----------------------------------------------------------------------------------------------------------


def _print(identity: SiteIdentity | None, problem: str, now: datetime) -> None:
    if identity is None:
        print_text(f"not enrolled: {problem}")
    else:
        left = identity.expires_at - now
        state = f"{left.days} days left" if left.total_seconds() > 0 else "EXPIRED"
        print_text(
            f"{identity.participant} of federation {identity.federation}, coordinator {identity.coordinator_address}\n"
            f"certificate valid until {identity.expires_at:%Y-%m-%d %H:%M} UTC, {state}"
        )


def _print_contact(contact: ContactState | None) -> None:
    if contact is None:
        return
    if contact.reason:
        since = _time(datetime.fromisoformat(contact.since))
        print_text(f"the coordinator has been out of reach since {since} UTC: {_why(contact.reason, contact.message)}")
    else:
        print_text("in touch with the coordinator")
    if contact.clock:
        print_text(f"CLOCK_WRONG: {contact.clock}")


def _print_runs(runs: Sequence[RunStatus]) -> None:
    if not runs:
        print_text("no run so far")
        return
    print_text("")
    print_table(
        ["run", "standing", "since", "reason"],
        [
            [
                status.run.run,
                status.run.standing.value,
                _time(status.run.updated_at),
                _why(status.run.reason, status.run.message),
            ]
            for status in runs
        ],
    )
    rounds = [entry for status in runs if status.run.standing is not RunStanding.DECLINED for entry in status.rounds]
    if rounds:
        print_text("")
        print_table(
            ["round", "kind", "phase", "outcome", "sent", "clipped", "since", "reason"],
            [
                [
                    f"{entry.run}/{entry.round}",
                    entry.kind,
                    entry.phase.value,
                    entry.outcome,
                    f"{entry.uploaded_bytes / 2**20:.1f} MiB" if entry.uploaded_bytes else "",
                    _clipped(entry.clipping),
                    _time(entry.updated_at),
                    _why(entry.reason, entry.message),
                ]
                for entry in rounds
            ],
        )


def _clipped(clipping: str) -> str:
    """What the plan's bounds took from the update, in a few words."""
    if not clipping:
        return ""
    report = ClipReport.from_json(clipping)
    parts = [f"scaled by {report.scale:.3g}"] if report.scale != 1.0 else []
    if report.clipped_elements:
        parts.append(f"{report.clipped_elements} elements, {100 * report.lost_norm:.2g} % of the norm")
    return "; ".join(parts) or "nothing"


def _why(reason: str, message: str) -> str:
    return ": ".join(part for part in (reason, message) if part)


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"
