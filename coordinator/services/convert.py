"""Rows of the store as messages of the API, and requests as values of the core. The only translation on this side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from enum import Enum
from typing import Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from accord.v1 import resources_pb2
from common import identifiers
from common.basemodel import BaseModel
from common.domains import PlanDomain
from common.errors import InvalidArgument
from common.instructions import Task
from common.plan import Plan, TensorClip
from common.rpc.assignments import ROUND_KINDS, ROUND_STATES, RUN_STATES, timestamp
from common.rpc.unknown import require_known
from coordinator.planning import PhaseChoice, PlanSettings
from coordinator.rounds import model
from coordinator.rounds.model import AdapterState, EpochState, ParticipantState, ParticipationState

EPOCH_STATES: Final = {
    EpochState.ADVERTISING: resources_pb2.EPOCH_STATE_ADVERTISING,
    EpochState.SHARING: resources_pb2.EPOCH_STATE_SHARING,
    EpochState.CONFIRMING: resources_pb2.EPOCH_STATE_CONFIRMING,
    EpochState.READY: resources_pb2.EPOCH_STATE_READY,
    EpochState.CLOSED: resources_pb2.EPOCH_STATE_CLOSED,
    EpochState.FAILED: resources_pb2.EPOCH_STATE_FAILED,
}
PARTICIPATION_STATES: Final = {
    ParticipationState.PRESENT: resources_pb2.PARTICIPATION_STATE_PRESENT,
    ParticipationState.PREPARED: resources_pb2.PARTICIPATION_STATE_PREPARED,
    ParticipationState.UPLOADED: resources_pb2.PARTICIPATION_STATE_UPLOADED,
    ParticipationState.COMMITTED: resources_pb2.PARTICIPATION_STATE_COMMITTED,
    ParticipationState.REVEALED: resources_pb2.PARTICIPATION_STATE_REVEALED,
    ParticipationState.FAILED: resources_pb2.PARTICIPATION_STATE_FAILED,
    ParticipationState.DROPPED: resources_pb2.PARTICIPATION_STATE_DROPPED,
}
ADAPTER_STATES: Final = {
    AdapterState.CANDIDATE: resources_pb2.ADAPTER_STATE_CANDIDATE,
    AdapterState.ACCEPTED: resources_pb2.ADAPTER_STATE_ACCEPTED,
    AdapterState.SET_ASIDE: resources_pb2.ADAPTER_STATE_SET_ASIDE,
}
PARTICIPANT_STATES: Final = {
    ParticipantState.ACTIVE: resources_pb2.PARTICIPANT_STATE_ACTIVE,
    ParticipantState.REVOKED: resources_pb2.PARTICIPANT_STATE_REVOKED,
}
State = TypeVar("State", bound=Enum)


def run(row: model.Run, plan: Plan, members: tuple[model.RunMember, ...] = ()) -> resources_pb2.Run:
    """A run; `members` only where one run is asked for."""
    message = resources_pb2.Run(
        name=identifiers.run_name(row.name),
        state=RUN_STATES[row.state],
        plan_json=row.plan.decode(),
        plan_digest=row.plan_digest,
        round=row.latest_round,
        rounds_succeeded=row.rounds_succeeded,
        rounds_planned=plan.rounds,
        adapter_digest=row.newest_adapter,
        accepted_adapter_digest=row.accepted_adapter,
        reason=row.reason,
        message=row.message,
        create_time=timestamp(row.created_at),
        end_time=_optional(row.ended_at),
    )
    message.members.extend(
        resources_pb2.RunMember(
            participant=identifiers.participant_name(member.participant),
            joined=member.joined,
            reason=member.reason,
            message=member.message,
            update_time=timestamp(member.updated_at),
        )
        for member in members
    )
    return message


def round_(
    row: model.Round, participations: tuple[model.Participation, ...] = (), epoch: model.KeyEpoch | None = None
) -> resources_pb2.Round:
    """A round with who is in it. `epoch`: the key epoch that it uses or waits for."""
    return resources_pb2.Round(
        name=row.name,
        number=row.number,
        kind=ROUND_KINDS[row.kind],
        state=ROUND_STATES[row.state],
        phase_start_time=timestamp(row.phase_started_at),
        deadline_time=None if row.state.is_over else timestamp(row.deadline),
        epoch=row.epoch,
        base_adapter_digest=row.base_adapter,
        adapter_digest=row.result_adapter or "",
        cohort=[identifiers.participant_name(name) for name in row.cohort],
        survivors=[identifiers.participant_name(name) for name in row.survivors],
        reason=row.reason,
        message=row.message,
        metrics=[resources_pb2.Metric(name=name, value=value) for name, value in row.metrics],
        closed_metric_groups=[
            resources_pb2.ClosedMetricGroup(name=group.name, contributors=group.contributors, needed=group.needed)
            for group in row.closed_groups
        ],
        create_time=timestamp(row.created_at),
        end_time=_optional(row.ended_at),
        participations=[participation(entry) for entry in participations],
        epoch_state=EPOCH_STATES[epoch.state] if epoch is not None else resources_pb2.EPOCH_STATE_UNSPECIFIED,
        cohort_size=len(row.cohort),
        survivor_count=len(row.survivors),
    )


def basic_round(row: model.Round) -> resources_pb2.Round:
    """A round without the names in it: of a thousand members they are most of its bytes."""
    message = round_(replace(row, cohort=(), survivors=()))
    message.cohort_size, message.survivor_count = len(row.cohort), len(row.survivors)
    return message


def participation(row: model.Participation) -> resources_pb2.Participation:
    return resources_pb2.Participation(
        participant=identifiers.participant_name(row.participant),
        state=PARTICIPATION_STATES[row.state],
        reason=row.reason,
        message=row.message,
        activity=row.activity,
        progress_done=row.progress_done,
        progress_total=row.progress_total,
        uploaded_bytes=row.uploaded_bytes,
        upload_bytes=row.upload_bytes,
        update_time=timestamp(row.updated_at),
    )


def participant(row: model.Participant) -> resources_pb2.Participant:
    return resources_pb2.Participant(
        name=identifiers.participant_name(row.name),
        state=PARTICIPANT_STATES[row.state],
        enroll_time=timestamp(row.enrolled_at),
        last_seen_time=_optional(row.last_seen_at),
        certificate_expire_time=timestamp(row.certificate_expires_at),
        certificate_serial=row.certificate_serial,
        software_version=row.software_version,
        revoke_reason=row.revoke_reason,
        identity_key_sha256=row.identity_key_sha256,
    )


def join_token(row: model.JoinToken, *, now: datetime) -> resources_pb2.JoinToken:
    """A token as it stands at `now`; never its secret, nor the digest of it."""
    return resources_pb2.JoinToken(
        name=identifiers.join_token_name(row.name),
        participant=identifiers.participant_name(row.participant),
        state=_join_token_state(row, now=now),
        create_time=timestamp(row.created_at),
        expire_time=timestamp(row.expires_at),
        use_time=_optional(row.used_at),
    )


def _join_token_state(row: model.JoinToken, *, now: datetime) -> resources_pb2.JoinTokenState.ValueType:
    if row.used_at is not None:
        return resources_pb2.JOIN_TOKEN_STATE_USED
    if row.revoked_at is not None:
        return resources_pb2.JOIN_TOKEN_STATE_REVOKED
    if row.expires_at <= now:
        return resources_pb2.JOIN_TOKEN_STATE_EXPIRED
    return resources_pb2.JOIN_TOKEN_STATE_OPEN


def web_token(row: model.WebToken, *, now: datetime) -> resources_pb2.WebToken:
    """A token as it stands at `now`; never its secret, nor the digest of it."""
    return resources_pb2.WebToken(
        name=identifiers.web_token_name(row.name),
        label=row.label,
        state=_web_token_state(row, now=now),
        creator=row.creator,
        create_time=timestamp(row.created_at),
        expire_time=timestamp(row.expires_at),
    )


def _web_token_state(row: model.WebToken, *, now: datetime) -> resources_pb2.WebTokenState.ValueType:
    if row.revoked_at is not None:
        return resources_pb2.WEB_TOKEN_STATE_REVOKED
    if row.expires_at <= now:
        return resources_pb2.WEB_TOKEN_STATE_EXPIRED
    return resources_pb2.WEB_TOKEN_STATE_OPEN


def adapter(row: model.Adapter) -> resources_pb2.Adapter:
    return resources_pb2.Adapter(
        name=identifiers.adapter_name(row.digest),
        run=identifiers.run_name(row.run),
        round=row.round,
        state=ADAPTER_STATES[row.state],
        size_bytes=row.size_bytes,
        parent_digest=row.parent or "",
        manifest_json=row.manifest.decode(),
        manifest_signature=row.manifest_signature.hex(),
        create_time=timestamp(row.created_at),
        heldout_loss=row.heldout_loss or 0.0,
    )


def audit_event(row: model.AuditEvent) -> resources_pb2.AuditEvent:
    return resources_pb2.AuditEvent(
        sequence=row.sequence,
        time=timestamp(row.time),
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        details_json=row.details,
        chain_digest=row.chain_digest,
    )


def plan_settings(message: resources_pb2.PlanSettings) -> PlanSettings:
    """What an operator asks for; 0 and "" mean "not said".

    Raises InvalidArgument for a broken base model, and for settings that only a newer version knows.
    """
    require_known(message, what="the plan's settings")
    return PlanSettings(
        base_model=BaseModel.from_json(message.base_model_json),
        rank=message.rank,
        alpha=message.alpha,
        target_modules=tuple(message.target_modules),
        rounds=message.rounds,
        method=message.method,
        server_optimizer=message.server_optimizer,
        server_learning_rate=message.server_learning_rate,
        learning_rate=message.learning_rate,
        steps_per_round=message.steps_per_round,
        batch_size=message.batch_size,
        max_length=message.max_length,
        element_clip=message.element_clip,
        tensor_clips=tuple(TensorClip(own.name, own.clip) for own in message.tensor_clips),
        max_update_norm=message.max_update_norm,
        weight_cap=message.weight_cap,
        least_cohort=message.least_cohort,
        most_participants=message.most_participants,
        rounds_per_epoch=message.rounds_per_epoch,
        gate_loss_rise=message.gate_loss_rise,
        most_failed_rounds=message.most_failed_rounds,
        evaluation_records=message.evaluation_records,
        forming=_phase(message.forming),
        training=_phase(message.training),
        collecting=_phase(message.collecting),
        unmasking=_phase(message.unmasking),
        key_setup=_phase(message.key_setup),
        seed=message.seed,
        instruction_set=message.instruction_set_json,
        name_survivors=message.name_survivors,
        schedule=message.schedule,
        phase_rounds=message.phase_rounds,
        beta1=message.beta1,
        beta2=message.beta2,
        tau=message.tau,
        product_probes=message.product_probes,
        learning_rate_schedule=message.learning_rate_schedule,
        final_rate_fraction=message.final_rate_fraction,
        objective=message.objective,
        dpo_beta=message.dpo_beta,
        heads=message.heads,
        proximal_weight=message.proximal_weight,
        alignment=message.alignment,
        control_variates=message.control_variates,
        initial_adapter=message.initial_adapter,
        domains=tuple(_domain(own) for own in message.domains),
        updates=message.updates_json,
        domain=message.domain,
        beneath_adapter=message.beneath_adapter,
        privacy=message.privacy_json,
    )


def _domain(message: resources_pb2.PlanDomain) -> PlanDomain:
    try:
        tasks = tuple(Task(task) for task in message.tasks)
    except ValueError:
        known = ", ".join(task.value for task in Task)
        raise InvalidArgument(f"domains: a task of {message.name!r} is none of {known}") from None
    return PlanDomain(message.name, tasks or tuple(Task), message.most_records, message.reference_loss)


def states_of(wanted: Iterable[int], table: Mapping[State, int]) -> tuple[State, ...]:
    """The states that a listing asks for. Raises InvalidArgument for one that does not exist, UNSPECIFIED too."""
    known = {number: state for state, number in table.items()}
    try:
        return tuple(known[number] for number in wanted)
    except KeyError as error:
        raise InvalidArgument(f"states: {error} is none of {', '.join(state.value for state in table)}") from None


def _phase(message: resources_pb2.PhaseLimits) -> PhaseChoice:
    return PhaseChoice(quorum=message.quorum, window_seconds=message.window_seconds)


def _optional(time: datetime | None) -> Timestamp | None:
    return timestamp(time) if time is not None else None
