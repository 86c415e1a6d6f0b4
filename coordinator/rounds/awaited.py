"""Whom a run waits for, since when, why, and what an operator can do about it.

A function of where the run, its open round and its key epoch stand, as assignments are: whoever has something to do
that the phase cannot close without is waited for. Knows nothing of storage, clocks or protobuf.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from common.plan import Plan
from common.states import RoundState, RunState
from coordinator.rounds.decisions import key_step_expects
from coordinator.rounds.model import (
    EpochState,
    KeyEpoch,
    Participant,
    ParticipantState,
    Participation,
    ParticipationState,
    Round,
    Run,
    RunMember,
)

# A daemon asks again within a minute, and its last call is noted every ten seconds.
SILENT_AFTER: Final = timedelta(minutes=3)

WORKING: Final = "WORKING"
SILENT: Final = "SILENT"
NEVER_SEEN: Final = "NEVER_SEEN"
CERTIFICATE_EXPIRED: Final = "CERTIFICATE_EXPIRED"
REVOKED: Final = "REVOKED"

KEY_STEPS: Final = {
    EpochState.ADVERTISING: "advertise keys",
    EpochState.SHARING: "deposit shares",
    EpochState.CONFIRMING: "confirm shares",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """All that decides whom a run waits for.

    members: ids that its charter names. standings, known: by participant. round: the open one. epoch: the newest.
    sent: who has sent the message of the epoch's present step. revealed: who has revealed shares in the open round.
    revealing: how many must; 0 while nobody is asked.
    """

    now: datetime
    run: Run
    plan: Plan
    members: tuple[str, ...]
    standings: Mapping[str, RunMember]
    known: Mapping[str, Participant]
    round: Round | None = None
    epoch: KeyEpoch | None = None
    participations: tuple[Participation, ...] = ()
    sent: Collection[str] = ()
    revealed: Collection[str] = ()
    revealing: int = 0

    @property
    def joined(self) -> tuple[str, ...]:
        """Who has joined and is not revoked."""
        return tuple(
            name
            for name, standing in self.standings.items()
            if standing.joined and name in self.known and self.known[name].state is ParticipantState.ACTIVE
        )

    @property
    def has_key_setup(self) -> bool:
        return self.epoch is not None and self.epoch.state.is_setting_up


@dataclass(frozen=True, slots=True)
class Awaited:
    """One participant that is waited for, or out. `step` is "" for who is out; `reason` a constant."""

    participant: str
    step: str
    since: datetime
    last_seen: datetime | None
    reason: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a run waits for. done of quorum: how many have done what the phase asks for, and how many it takes."""

    summary: str
    done: int = 0
    quorum: int = 0
    awaited: tuple[Awaited, ...] = ()
    out: tuple[Awaited, ...] = ()


def explain(scene: Scene) -> Explanation:
    """Whom the run waits for now, by name, and who is out of it."""
    return replace(_waiting(scene), out=tuple(_out(scene)))


def _waiting(scene: Scene) -> Explanation:
    run, round_ = scene.run, scene.round
    if run.state.is_over:
        why = ": ".join(text for text in (run.reason, run.message) if text)
        return Explanation(f"the run is {run.state.value}" + (f" ({why})" if why else ""))
    if run.state is RunState.CREATED:
        return _created(scene)
    if round_ is None:
        if run.state is RunState.PAUSED:
            return Explanation("the run is paused and no round is open: resume it, or roll it back first")
        return Explanation("no round is open: the coordinator is about to begin one")
    match round_.state:
        case RoundState.FORMING:
            return _forming(scene, round_)
        case RoundState.TRAINING:
            return _training(scene, round_)
        case RoundState.COLLECTING:
            return _collecting(scene, round_)
        case RoundState.UNMASKING:
            return _unmasking(scene, round_)
        case _:
            return Explanation("the coordinator opens the sum and makes the next adapter: nobody is waited for")


# --- phases -------------------------------------------------------------------------------------------------------


def _created(scene: Scene) -> Explanation:
    joined, quorum = len(scene.joined), scene.plan.phases.forming.quorum
    return Explanation(
        summary=f"the run waits for an operator to start it; {joined} of {len(scene.members)} members have joined, and "
        f"its rounds take {quorum}",
        done=joined,
        quorum=quorum,
        awaited=tuple(_undecided(scene)),
    )


def _undecided(scene: Scene) -> Iterator[Awaited]:
    """Members that have neither joined nor declined. A run that was started without them still waits for its quorum."""
    for name in scene.members:
        if name not in scene.standings:
            yield _await(scene, name, "join", scene.run.created_at)


def _forming(scene: Scene, round_: Round) -> Explanation:
    arrived = {p.participant for p in scene.participations}
    present = sum(not p.state.is_out for p in scene.participations)
    return Explanation(
        summary=f"{round_.name} forms: members that have joined say that they are there",
        done=present,
        quorum=scene.plan.phases.forming.quorum,
        awaited=tuple(
            _await(scene, name, "ask for work", round_.phase_started_at) for name in sorted(set(scene.joined) - arrived)
        )
        + tuple(_key_setup(scene))
        + tuple(_undecided(scene)),
    )


def _training(scene: Scene, round_: Round) -> Explanation:
    prepared = sum(p.state is ParticipationState.PREPARED for p in scene.participations)
    beside = " and set up masking keys beside it" if scene.has_key_setup else ""
    return Explanation(
        summary=f"{round_.name} trains: those who were there make their updates{beside}",
        done=prepared,
        quorum=scene.plan.phases.training.quorum,
        awaited=(
            *_key_setup(scene),
            *(
                _await(scene, p.participant, "train", round_.phase_started_at, p)
                for p in scene.participations
                if p.state is ParticipationState.PRESENT
            ),
        ),
    )


def _collecting(scene: Scene, round_: Round) -> Explanation:
    by_name = {p.participant: p for p in scene.participations}
    uploaded = sum(p.state is ParticipationState.UPLOADED for p in scene.participations)
    return Explanation(
        summary=f"{round_.name} collects: the cohort uploads masked updates",
        done=uploaded,
        quorum=scene.plan.phases.collecting.quorum,
        awaited=tuple(
            _await(scene, name, "upload", round_.phase_started_at, by_name[name])
            for name in sorted(round_.cohort)
            if name in by_name and by_name[name].state is ParticipationState.PREPARED
        ),
    )


def _unmasking(scene: Scene, round_: Round) -> Explanation:
    return Explanation(
        summary=f"{round_.name} is unmasked: members of the cohort reveal one share for each of it",
        done=len(scene.revealed),
        quorum=scene.revealing,
        awaited=tuple(
            _await(scene, name, "reveal shares", round_.phase_started_at)
            for name in sorted(set(round_.cohort) - set(scene.revealed))
        ),
    )


def _key_setup(scene: Scene) -> Iterator[Awaited]:
    epoch = scene.epoch
    if epoch is None or scene.round is None or not epoch.state.is_setting_up:
        return
    expected = key_step_expects(epoch, scene.round, joined=scene.joined, participations=scene.participations)
    for name in sorted(expected - set(scene.sent)):
        yield _await(scene, name, KEY_STEPS[epoch.state], epoch.phase_started_at)


def _out(scene: Scene) -> Iterator[Awaited]:
    if scene.run.state.is_over:
        return
    told: set[str] = set()
    for p in scene.participations:
        if p.state.is_out:
            told.add(p.participant)
            yield _left(scene, p.participant, p.updated_at, p.reason, p.message)
    for name, standing in sorted(scene.standings.items()):
        if not standing.joined and name not in told:
            yield _left(scene, name, standing.updated_at, standing.reason, standing.message)


# --- one participant ----------------------------------------------------------------------------------------------


def _await(scene: Scene, name: str, step: str, since: datetime, own: Participation | None = None) -> Awaited:
    known = scene.known.get(name)
    last_seen = known.last_seen_at if known is not None else None
    reason, message, advice = _state_of(name, known, now=scene.now)
    if reason == WORKING:
        message = _says(own) or message
        if step == "join":
            advice = f"ask {name}'s operator to look at `accord-participant status`: its daemon has not decided yet"
    return Awaited(name, step, since, last_seen, reason, message, advice)


def _state_of(name: str, known: Participant | None, *, now: datetime) -> tuple[str, str, str]:
    """Reason, message and advice, from what is known of the participant alone."""
    if known is None:
        invite = f"accord-coordinator token create {name}"
        return NEVER_SEEN, "has not enrolled yet", f"send its operator a join token: {invite}"
    if known.state is ParticipantState.REVOKED:
        return REVOKED, f"was revoked: {known.revoke_reason}", "leave it out of the next charter; this run goes on"
    if known.certificate_expires_at <= now:
        invite = f"accord-coordinator token create {name}"
        message = f"its certificate ended at {_moment(known.certificate_expires_at)}, so it cannot call"
        return CERTIFICATE_EXPIRED, message, f"send its operator a join token, to enrol with the same key: {invite}"
    if known.last_seen_at is None:
        advice = f"ask {name}'s operator to start the daemon, and to run `accord-participant check` if it does run"
        return NEVER_SEEN, "is enrolled, and its daemon has never called", advice
    silence = now - known.last_seen_at
    if silence > SILENT_AFTER:
        advice = (
            f"ask {name}'s operator to run `accord-participant check`; if it stays away, the phase closes without it "
            "at its deadline where the quorum allows"
        )
        return SILENT, f"has not called for {_span(silence)}", advice
    return WORKING, "calls as it should", "wait; nothing to do"


def _says(own: Participation | None) -> str:
    """What the site says that it does."""
    if own is None:
        return ""
    if own.upload_bytes:
        return f"has uploaded {own.uploaded_bytes} of {own.upload_bytes} bytes, the last at {_moment(own.updated_at)}"
    if not own.activity:
        return ""
    progress = f" {own.progress_done} of {own.progress_total}" if own.progress_total else ""
    return f"{own.activity}{progress}, as it said at {_moment(own.updated_at)}"


def _left(scene: Scene, name: str, since: datetime, reason: str, message: str) -> Awaited:
    known = scene.known.get(name)
    last_seen = known.last_seen_at if known is not None else None
    advice = (
        "it was put out for breaking the masking protocol: look at the audit log with its operator"
        if reason == "MEMBER_AT_FAULT"
        else f"the reason is {name}'s own: its operator finds it in `accord-participant status`"
        if reason not in (REVOKED, "CERTIFICATE_REVOKED")
        else "leave it out of the next charter; this run goes on"
    )
    return Awaited(name, "", since, last_seen, reason, message, advice)


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _span(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"
