"""From the plan of a run to the parameters of its masking: both sides build the same values from the same bytes."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from common.charter import Charter
from common.plan import Plan
from common.secagg import KeyEpoch, PinnedMember, PinnedMembers, RoundKind, SecaggPlan
from common.sent import sent_vectors
from common.states import RoundKind as Kind

MASKED_KIND: Final = {Kind.TRAIN: RoundKind.TRAINING, Kind.EVALUATE: RoundKind.EVALUATION}
_MODEL_CONTEXT: Final = b"accord/model/v1\x00"


def plan_digest(plan: bytes) -> bytes:
    """32 bytes: what a run's plan is named by."""
    return hashlib.sha256(plan).digest()


def secagg_plan(plan: Plan, digest: bytes) -> SecaggPlan:
    """The masking part of a plan. digest: 32 bytes, of the plan's own bytes."""
    masking = plan.masking
    return SecaggPlan(
        plan_hash=digest,
        run_id=bytes.fromhex(plan.run_id),
        members_floor=masking.least_cohort,
        members_limit=masking.most_participants,
        rounds_per_epoch=masking.rounds_per_epoch,
        vectors=tuple(sent.slots for sent in sent_vectors(plan)),
        schedule=plan.adapter_method().schedule,
        metrics=masking.metrics,
        lanes=masking.lanes,
        colluders=masking.colluders,
        metric_groups=masking.metric_groups,
    )


def key_epoch(plan: Plan, digest: bytes, *, number: int, first_round: int) -> KeyEpoch:
    """One key epoch of a run."""
    return KeyEpoch(secagg_plan(plan, digest), number, first_round)


def model_hash(plan: Plan, *, adapter: str, instruction_set: str) -> bytes:
    """32 bytes: all that an update is trained from. Sites that were given different models share no mask."""
    digest = hashlib.sha256(_MODEL_CONTEXT)
    digest.update(bytes.fromhex(plan.base_model.digest))
    digest.update(bytes.fromhex(adapter))
    digest.update(hashlib.sha256(instruction_set.encode()).digest())
    return digest.digest()


def pinned_members(charter: Charter, *, now: datetime) -> PinnedMembers:
    """Who may have masking keys, and by which certificates, as the charter says."""
    return PinnedMembers(
        {
            member.id: PinnedMember(
                uri=member.uri,
                ca_certificates="".join(member.ca_certificates).encode(),
                key_sha256=bytes.fromhex(member.identity_key_sha256) if member.identity_key_sha256 else None,
            )
            for member in charter.members
        },
        now,
    )
