"""Ids and names: there and back, and everything else refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import identifiers as ids
from common.errors import InvalidArgument
from common.identifiers import (
    CoordinatorIdentity,
    FederationId,
    OperatorId,
    OperatorIdentity,
    ParticipantId,
    ParticipantIdentity,
    Role,
)

some_id = st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True)
some_digest = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@given(some_id, st.integers(1, 2**32 - 1))
def test_every_name_is_read_back(name, number):
    assert ids.parse_run_name(ids.run_name(name)) == name
    assert ids.parse_round_name(ids.round_name(name, number)) == (name, number)
    assert ids.parse_participant_name(ids.participant_name(name)) == name
    assert ids.parse_join_token_name(ids.join_token_name(name)) == name


@given(some_id, some_id, st.sampled_from(sorted(ids.OPERATOR_ROLES, key=str)))
def test_every_identity_is_read_back(federation, name, role):
    for identity in (
        CoordinatorIdentity(FederationId(federation)),
        ParticipantIdentity(FederationId(federation), ParticipantId(name)),
        OperatorIdentity(FederationId(federation), OperatorId(name), role),
    ):
        assert ids.parse_identity_uri(identity.uri) == identity


@pytest.mark.parametrize(
    "text", ["", "-bank", "Bank", "bank_1", "bank/..", "a" * 41, "bänk", "bank ", "bank\n", ".", "--help", "bank\x00"]
)
def test_what_is_no_id_is_refused_with_the_fields_name(text):
    with pytest.raises(InvalidArgument, match=r"^participant_id: .* is not an id"):
        ids.parse_participant_id(text)


@pytest.mark.parametrize(
    ("parse", "name"),
    [
        (ids.parse_run_name, "runs/"),
        (ids.parse_run_name, "runs/a/rounds/1"),
        (ids.parse_run_name, "run/a"),
        (ids.parse_run_name, "a"),
        (ids.parse_round_name, "runs/a"),
        (ids.parse_round_name, "runs/a/rounds/0"),
        (ids.parse_round_name, "runs/a/rounds/01"),
        (ids.parse_round_name, "runs/a/rounds/-1"),
        (ids.parse_round_name, "runs/a/rounds/4294967296"),
        (ids.parse_round_name, "runs/a/rounds/١"),
        (ids.parse_round_name, "runs/a/rounds/1/x"),
        (ids.parse_participant_name, "participants/A"),
        (ids.parse_join_token_name, "jointokens/a"),
    ],
)
def test_what_is_no_name_is_refused(parse, name):
    with pytest.raises(InvalidArgument, match=r"^name: "):
        parse(name)


def test_a_message_shows_hostile_input_short_and_escaped():
    with pytest.raises(InvalidArgument) as caught:
        ids.parse_run_id("\x1b[31m" + "A" * 10_000)

    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 250


def test_a_role_that_only_machines_have_is_no_operators():
    for role in (Role.ANONYMOUS, Role.PARTICIPANT):
        with pytest.raises(InvalidArgument, match="operator, security-officer, viewer"):
            ids.parse_operator_role(role.value)
