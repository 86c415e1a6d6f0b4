"""What every `Store` must do with listings that are asked for by state, name, actor or action."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from common.errors import InvalidArgument, NotFound
from common.states import RoundState
from coordinator.rounds.model import AdapterState, ParticipantState
from tests.conformance import samples
from tests.conformance.samples import NOW


@pytest.fixture
def filled(store):
    with store.write() as writer:
        writer.add_run(samples.run("run"))
        for number in range(1, 7):
            state = RoundState.FAILED if number % 2 else RoundState.SUCCEEDED
            writer.add_round(replace(samples.round_(number, run="run"), state=state))
            writer.add_adapter(samples.adapter(f"digest{number}", number, run="run"))
            writer.set_adapter_state(
                f"digest{number}", AdapterState.ACCEPTED if number < 5 else AdapterState.SET_ASIDE, heldout_loss=None
            )
            writer.put_participant(samples.participant(f"site-{number}"))
            token = replace(
                samples.token(f"t{number}"), participant=f"site-{number % 2}", expires_at=NOW + timedelta(days=1)
            )
            writer.add_join_token(token)
            writer.append_audit(
                time=NOW,
                actor=f"operators/{'ab'[number % 2]}",
                action="run_started" if number < 4 else "run_paused",
                subject="runs/run",
                details=str(number),
            )
        writer.revoke_participant("site-2", at=NOW, reason="left")
        writer.update_join_token(replace(writer.join_token("t1"), used_at=NOW))
        writer.update_join_token(replace(writer.join_token("t2"), revoked_at=NOW))
    return store


def test_runs_that_ended_after_a_time_are_listed_whenever_they_began(store):
    with store.write() as writer:
        for number in range(12):
            ended = NOW + timedelta(hours=12 - number) if number else None
            writer.add_run(
                replace(samples.run(f"run-{number}"), created_at=NOW + timedelta(seconds=number), ended_at=ended)
            )
    with store.read() as reader:
        found = reader.runs_ended_after(NOW + timedelta(hours=8))
    assert [run.name for run in found] == ["run-3", "run-2", "run-1"]


def test_rounds_and_adapters_are_listed_by_state(filled):
    with filled.read() as reader:
        failed = reader.rounds("run", states=(RoundState.FAILED,))
        both = reader.rounds("run", states=(RoundState.FAILED, RoundState.SUCCEEDED))
        accepted = reader.adapters("run", states=(AdapterState.ACCEPTED,))
        candidates = reader.adapters("run", states=(AdapterState.CANDIDATE,))
    assert [row.number for row in failed.rows] == [5, 3, 1]
    assert len(both.rows) == 6
    assert [row.round for row in accepted.rows] == [4, 3, 2, 1]
    assert candidates.rows == ()


def test_participants_are_listed_by_state(filled):
    with filled.read() as reader:
        revoked = reader.participants(states=(ParticipantState.REVOKED,))
        active = reader.participants(states=(ParticipantState.ACTIVE,))
    assert [row.name for row in revoked.rows] == ["site-2"]
    assert len(active.rows) == 5


def test_join_tokens_are_listed_by_participant_and_by_whether_they_are_open(filled):
    with filled.read() as reader:
        assert {row.name for row in reader.join_tokens(participant="site-1").rows} == {"t1", "t3", "t5"}
        assert {row.name for row in reader.join_tokens(open_at=NOW).rows} == {"t3", "t4", "t5", "t6"}
        assert {row.name for row in reader.join_tokens(participant="site-1", open_at=NOW).rows} == {"t3", "t5"}
        assert reader.join_tokens(open_at=NOW + timedelta(days=1)).rows == ()


def test_audit_events_are_listed_by_actor_and_action(filled):
    with filled.read() as reader:
        mine = reader.audit_events(actor="operators/a").rows
        started = reader.audit_events(action="run_started", newest_first=True).rows
        both = reader.audit_events(actor="operators/b", action="run_paused", subject="runs/run").rows
        assert [event.details for event in mine] == ["2", "4", "6"]
        assert [event.details for event in started] == ["3", "2", "1"]
        assert [event.details for event in both] == ["5"]
        assert reader.audit_event(5).details == "5"
        with pytest.raises(NotFound):
            reader.audit_event(7)


@pytest.mark.parametrize(
    "listing",
    [
        lambda reader, **page: reader.rounds("run", states=(RoundState.FAILED,), **page),
        lambda reader, **page: reader.adapters("run", states=(AdapterState.ACCEPTED,), **page),
        lambda reader, **page: reader.participants(states=(ParticipantState.ACTIVE,), **page),
        lambda reader, **page: reader.join_tokens(open_at=NOW, **page),
        lambda reader, **page: reader.audit_events(action="run_started", **page),
    ],
    ids=["rounds", "adapters", "participants", "join tokens", "audit"],
)
def test_a_filtered_listing_has_pages_of_its_own(filled, listing):
    with filled.read() as reader:
        whole = listing(reader).rows
        found, token = [], ""
        while True:
            page = listing(reader, page_size=2, page_token=token)
            found += page.rows
            if not (token := page.next_token):
                break
            kept = token
        assert tuple(found) == whole
        with pytest.raises(InvalidArgument, match="does not belong to this listing"):
            reader.runs(page_size=2, page_token=kept)


def test_a_token_of_a_filtered_listing_is_of_no_use_for_the_whole_one(filled):
    with filled.read() as reader:
        token = reader.rounds("run", states=(RoundState.FAILED,), page_size=1).next_token
        with pytest.raises(InvalidArgument):
            reader.rounds("run", page_size=1, page_token=token)
