"""`accord-participant status`: what this site is and has done, from its own files alone."""

from __future__ import annotations

import argparse
import fcntl
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from common.cli.output import print_json, print_table, print_text
from common.cli.watching import watched
from common.clock import SystemClock
from common.errors import AccordError, StorageFailed
from participant.cli.exits import Exit
from participant.config import ParticipantConfig, load_unpinned_config
from participant.contact import ContactState, read_contact
from participant.identity import SiteIdentity
from participant.journal import Journal, RoundEntry, RunEntry, RunStanding
from participant.policy_file import load_policy
from participant.update import ClipReport, Contribution

_SHOWN_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run with this site's latest rounds of it, newest first."""

    run: RunEntry
    rounds: tuple[RoundEntry, ...]


def execute(options: argparse.Namespace) -> Exit:
    """Print identity and journal. FAILED if the site is not enrolled: then there is nothing else to tell."""
    config = load_unpinned_config(options.config)
    return Exit(watched(options.watch, lambda: _show(config, as_json=options.json)))


def _show(config: ParticipantConfig, *, as_json: bool) -> int:
    try:
        identity: SiteIdentity | None = config.identity.load()
        problem = ""
    except AccordError as error:
        identity, problem = None, error.message
    runs = _runs(config.journal_file)
    now = SystemClock().now()
    is_running = _is_locked(config.lock_file)
    # What a daemon that has ended once wrote is of no interest.
    contact = read_contact(config.state_directory) if is_running else None
    try:
        privacy, privacy_problem = _privacy(config), ""
    except StorageFailed as error:
        privacy, privacy_problem = None, error.message
    if as_json:
        print_json(
            {
                "identity": _identity_json(identity, problem, now),
                "daemon_is_running": is_running,
                "contact": asdict(contact) if contact is not None else None,
                "privacy": privacy,
                "privacy_problem": privacy_problem,
                "runs": [_run_json(entry) for entry in runs],
            }
        )
    else:
        _print(identity, problem, now)
        print_text("the daemon is running" if is_running else "the daemon is not running")
        _print_contact(contact)
        _print_privacy(privacy)
        if privacy_problem:
            print_text(privacy_problem)
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


def _privacy(config: ParticipantConfig) -> dict[str, dict[str, float | None]] | None:
    """Epsilon spent and budget, of training and of figures; None while the ledger has no line and no budget is set."""
    policy = load_policy(config.policy_file)
    has_ledger = config.privacy_directory.is_dir() and any(config.privacy_directory.iterdir())
    if not has_ledger and policy.privacy is None:
        return None
    # The accountant takes its time to load: only for those who have something to count.
    from participant.privacy.desk import PrivacyDesk
    from participant.privacy.files import ledger_of, private_records

    spent = PrivacyDesk(
        bounds=policy.privacy,
        ledger=ledger_of(config, policy),
        count_records=lambda: private_records(config.data.settings(policy)),
        clock=SystemClock(),
        random_bytes=secrets.token_bytes,
    ).spent()
    return {
        "training": {"epsilon_spent": spent.training, "epsilon_budget": spent.training_budget},
        "figures": {"epsilon_spent": spent.figures, "epsilon_budget": spent.figures_budget},
    }


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


def _print_privacy(privacy: dict[str, dict[str, float | None]] | None) -> None:
    for of, found in (privacy or {}).items():
        spent, budget = found["epsilon_spent"] or 0.0, found["epsilon_budget"]
        if spent or budget is not None:
            limit = f" of a budget of {budget:g}" if budget is not None else ", and no budget is set"
            print_text(f"privacy: epsilon {spent:.2f} is spent on {of}{limit}")


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
            ["round", "kind", "phase", "outcome", "own loss", "sent", "clipped", "since", "reason"],
            [
                [
                    f"{entry.run}/{entry.round}",
                    entry.kind,
                    entry.phase.value,
                    entry.outcome,
                    _loss(entry.contribution),
                    f"{entry.uploaded_bytes / 2**20:.1f} MiB" if entry.uploaded_bytes else "",
                    _clipped(entry.clipping),
                    _time(entry.updated_at),
                    _why(entry.reason, entry.message),
                ]
                for entry in rounds
            ],
        )


def _loss(contribution: str) -> float | None:
    """This site's own held-out loss of the adapter that the round began from; it stays here."""
    figures = Contribution.from_json(contribution).metrics if contribution else {}
    tokens = figures.get("heldout_tokens", 0.0)
    return figures["heldout_loss"] / tokens if tokens else None


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
