"""Rows as messages: every state has its number, and nothing is lost on the way."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

import pytest

from accord.v1 import resources_pb2
from common.domains import PlanDomain
from common.instructions import Task
from common.rpc.assignments import ROUND_KINDS, ROUND_STATES, RUN_STATES
from coordinator.planning import PlanSettings
from coordinator.rounds.model import JoinToken
from coordinator.services import convert
from coordinator.services.admin_client import plain, plan_settings
from tests.fakes import START_OF_TIME
from tests.unit.test_planning import MODEL

TABLES = [
    (convert.EPOCH_STATES, resources_pb2.EpochState),
    (convert.PARTICIPATION_STATES, resources_pb2.ParticipationState),
    (convert.ADAPTER_STATES, resources_pb2.AdapterState),
    (convert.PARTICIPANT_STATES, resources_pb2.ParticipantState),
    (RUN_STATES, resources_pb2.RunState),
    (ROUND_STATES, resources_pb2.RoundState),
    (ROUND_KINDS, resources_pb2.RoundKind),
]


@pytest.mark.parametrize(
    ("table", "enum"), TABLES, ids=lambda part: getattr(getattr(part, "DESCRIPTOR", None), "name", "")
)
def test_every_state_has_its_own_number_and_every_number_a_state(table, enum):
    states = type(next(iter(table))).__members__.values()
    assert set(table) == set(states)
    assert sorted(table.values()) == sorted(set(enum.values()) - {0})
    prefix = enum.DESCRIPTOR.name
    for state, number in table.items():
        assert enum.Name(number).endswith(state.name), prefix


@pytest.mark.parametrize(
    ("changes", "after", "state"),
    [
        ({}, timedelta(), resources_pb2.JOIN_TOKEN_STATE_OPEN),
        ({}, timedelta(hours=1), resources_pb2.JOIN_TOKEN_STATE_EXPIRED),
        ({"revoked_at": START_OF_TIME}, timedelta(hours=2), resources_pb2.JOIN_TOKEN_STATE_REVOKED),
        ({"used_at": START_OF_TIME}, timedelta(hours=2), resources_pb2.JOIN_TOKEN_STATE_USED),
    ],
)
def test_a_join_tokens_state_follows_from_its_times(changes, after, state):
    token = JoinToken("a", "bank", "secret-digest", START_OF_TIME, START_OF_TIME + timedelta(hours=1), **changes)
    message = convert.join_token(token, now=START_OF_TIME + after)
    assert message.state == state
    assert "secret-digest" not in str(message)


def test_every_setting_of_the_api_reaches_the_plan_settings():
    """A field that is added to one side alone would be ignored in silence."""
    own = {field.name for field in fields(PlanSettings)}
    wire = {field.name.removesuffix("_json") for field in resources_pb2.PlanSettings.DESCRIPTOR.fields}
    assert own == wire
    message = resources_pb2.PlanSettings(
        base_model_json=MODEL.to_json(),
        target_modules=["q_proj"],
        tensor_clips=[resources_pb2.TensorClip(name="lora_B", clip=0.5)],
        domains=[resources_pb2.PlanDomain(name="clinic", tasks=["ner"], most_records=5, reference_loss=1.5)],
    )
    for number, field in enumerate(resources_pb2.PlanSettings.DESCRIPTOR.fields, start=2):
        if field.message_type is not None and not field.is_repeated:
            getattr(message, field.name).quorum = number
        elif field.name not in ("base_model_json", "target_modules", "tensor_clips", "domains"):
            kind = str if field.type == field.TYPE_STRING else bool if field.type == field.TYPE_BOOL else int
            setattr(message, field.name, kind(number))
    settings = convert.plan_settings(message)
    assert settings.base_model == MODEL
    assert settings.domains == (PlanDomain("clinic", (Task.NER,), 5, 1.5),)
    unsaid = PlanSettings(MODEL)
    assert {name for name in own if getattr(settings, name) == getattr(unsaid, name)} == {"base_model"}


def test_settings_by_name_become_the_message_that_they_name():
    message = plan_settings({"rank": 4, "forming": {"window_seconds": 30}, "target_modules": ["q_proj"]})
    assert (message.rank, message.forming.window_seconds, list(message.target_modules)) == (4, 30, ["q_proj"])


def test_a_plain_message_has_short_states_and_times_or_none():
    run = resources_pb2.Run(name="runs/a", state=resources_pb2.RUN_STATE_RUNNING, plan_json='{"rounds":3}')
    run.create_time.FromDatetime(START_OF_TIME)
    made = plain(run)
    assert (made["state"], made["plan"], made["create_time"], made["end_time"]) == (
        "running",
        {"rounds": 3},
        "2026-01-01T12:00:00Z",
        None,
    )
