"""What needs a person: problems and warnings, each with what to do. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from coordinator.web import words
from coordinator.web.reads import Plain

CA_SOON: Final = timedelta(days=60)
# Participants renew at two thirds of thirty days; one that has fewer days left does not renew.
CERTIFICATE_SOON: Final = timedelta(days=7)
SILENT_AFTER: Final = timedelta(hours=1)
FAILED_RUN_IS_NEWS: Final = timedelta(days=3)
MOST_REASONS: Final = 4
ENROL_ADVICE: Final = "`accord-coordinator token create NAME`; the site enrols again"
CHECK_ADVICE: Final = "Ask the site: `accord-participant check`"
STATUS_ADVICE: Final = "Ask the site: `accord-participant status`"
_ORDER: Final = ("bad", "warn", "idle")


@dataclass(frozen=True, slots=True)
class Finding:
    """tone: "bad", "warn" or "idle" (worth knowing). advice: what to do; commands stand in backticks."""

    tone: str
    title: str
    details: tuple[str, ...] = ()
    advice: str = ""
    link: str = ""


def standing_of(row: Plain, now: datetime) -> str:
    """How a participant stands: "revoked", "expired", "expiring", "never seen", "silent" or "active"."""
    if row["state"] == "revoked":
        return "revoked"
    ends, seen = words.moment(row["certificate_expire_time"]), words.moment(row["last_seen_time"])
    if ends is not None and ends <= now:
        return "expired"
    if ends is not None and ends - now < CERTIFICATE_SOON:
        return "expiring"
    if seen is None:
        return "never seen"
    return "silent" if now - seen > SILENT_AFTER else "active"


def findings(
    *,
    health: Mapping[str, str],
    federation: Plain,
    participants: Sequence[Plain],
    runs: Sequence[Plain],
    explained: Mapping[str, Plain],
    declined: Mapping[str, frozenset[str]],
    now: datetime,
) -> tuple[Finding, ...]:
    """The worst first. explained, declined: what each open run waits for, and who will not join it, by its name."""
    found = [
        *_of_coordinator(health, federation, participants, now),
        *(
            finding
            for run in runs
            for finding in _of_run(run, explained.get(run["name"]), declined.get(run["name"], frozenset()), now)
        ),
        *_of_participants(federation, participants, now),
    ]
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.tone)))


def _of_coordinator(
    health: Mapping[str, str], federation: Plain, participants: Sequence[Plain], now: datetime
) -> list[Finding]:
    found = [
        Finding(
            "bad",
            f"The coordinator is not ready: {name}",
            (text,),
            "Look at its log; it goes on by itself once this ends.",
        )
        for name, text in sorted(health.items())
    ]
    ends = words.moment(federation["ca_expire_time"])
    if ends is not None and ends - now < CA_SOON:
        tone = "bad" if ends <= now else "warn"
        detail = (f"It ends at {words.stamp(ends)}; then no participant gets in.",)
        found.append(
            Finding(tone, "The federation's CA ends soon", detail, "Replace it in time, with both trusted meanwhile.")
        )
    if not federation["charter_digest"]:
        if participants:
            advice = "`accord-coordinator charter draft --out charter.json`; once all members pin it, `charter publish`"
            found.append(Finding("warn", "No charter is published", ("Without one no run can be created.",), advice))
        else:
            advice = "`accord-coordinator token create NAME` for each member"
            found.append(Finding("idle", "Nobody has enrolled yet", ("Members join with a single-use token.",), advice))
    return found


def _of_run(run: Plain, explained: Plain | None, declined: frozenset[str], now: datetime) -> list[Finding]:
    name, link = words.bare(run["name"]), f"/{run['name']}"
    ended = words.moment(run["end_time"])
    if run["state"] == "failed" and ended is not None and now - ended < FAILED_RUN_IS_NEWS:
        advice = f"Read why its last rounds failed; what it published stays. `accord-coordinator round list {name}`"
        return [Finding("bad", f"Run {name} has failed", (words.why(run["reason"], run["message"]),), advice, link)]
    if run["state"] == "paused":
        return [Finding("idle", f"Run {name} is paused", (), f"`accord-coordinator run resume {name}`", link)]
    if explained is None:
        return []
    silent = [row for row in explained["awaited"] if row["reason"] not in ("", "WORKING")]
    place = explained_link(explained, link)
    found = []
    if silent:
        title = f"Run {name} waits for {len(silent)} not at work"
        found.append(Finding("warn", title, _each(silent), _advice(silent), place))
    out = [row for row in explained["out"] if row["participant"] not in declined]
    if out:
        found.append(Finding("warn", f"Run {name} goes on without {len(out)}", _each(out), _advice(out), place))
    refused = [row for row in explained["out"] if row["participant"] in declined]
    if refused:
        found.append(Finding("idle", f"{len(refused)} declined run {name}", _each(refused), _advice(refused), link))
    return found


def _each(rows: Sequence[Plain]) -> tuple[str, ...]:
    """A line for each reason, the most frequent first, with the first few names."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(words.why(row["reason"], row["message"]), []).append(words.bare(row["participant"]))
    frequent = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    shown = [f"{words.names(who)}: {reason}" for reason, who in frequent[:MOST_REASONS]]
    left = sum(len(who) for _, who in frequent[MOST_REASONS:])
    return (*shown, f"and {left} more for other reasons") if left else tuple(shown)


def _advice(rows: Sequence[Plain]) -> str:
    """What helps each of them, if it is the same, or else the first."""
    return next((str(row["advice"]) for row in rows if row["advice"]), "")


def explained_link(explained: Plain, otherwise: str) -> str:
    """Where the open round is shown, or else the run."""
    return f"/{explained['round']}" if explained["round"] else otherwise


def _of_participants(federation: Plain, participants: Sequence[Plain], now: datetime) -> list[Finding]:
    by_standing: dict[str, list[str]] = {}
    for row in participants:
        by_standing.setdefault(standing_of(row, now), []).append(words.bare(row["name"]))
    texts = {
        "expired": ("bad", "certificate has ended", "certificates have ended", ENROL_ADVICE),
        "expiring": ("warn", "certificate is not being renewed", "certificates are not being renewed", CHECK_ADVICE),
        "silent": ("warn", "has not called for an hour", "have not called for an hour", STATUS_ADVICE),
    }
    found = []
    for standing, (tone, one, many, advice) in texts.items():
        who = by_standing.get(standing, [])
        if who:
            title = f"{who[0]}: {one}" if len(who) == 1 else f"{len(who)} participants: {many}"
            details = (words.names(who),) if len(who) > 1 else ()
            found.append(Finding(tone, title, details, advice, f"/participants?show={standing}"))
    own = federation["software_version"]
    others = sorted(
        {
            row["software_version"]
            for row in participants
            if row["state"] == "active" and row["software_version"] not in ("", own)
        }
    )
    if others:
        found.append(
            Finding("idle", f"Participants run other versions than {own}: {words.names(others)}", link="/participants")
        )
    return found
