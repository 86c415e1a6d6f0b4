"""What every `Store` must do with rows and transactions."""

# ruff: noqa: PT012 - a transaction may fail at its end, so the whole block is what raises

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import AlreadyExists, InvalidArgument, NotFound, VersionConflict
from common.states import RunState
from coordinator.rounds.model import AdapterState, MessageKind, ParticipantState, ProtocolMessage
from tests.conformance import samples
from tests.conformance.samples import LATER, NOW
from tests.memory import peak_memory

# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(store):
    """A store with one row of each type, every field of it set."""
    with store.write() as writer:
        writer.add_certificate(samples.CERTIFICATE)  # Before what it refers to: the order does not matter.
        writer.put_upload(samples.UPLOAD)
        writer.put_participation(samples.PARTICIPATION)
        writer.add_round(samples.ROUND)
        writer.add_epoch(samples.EPOCH)
        writer.put_run_member(samples.MEMBER)
        assert writer.add_message(samples.MESSAGE)
        writer.add_share_envelopes([samples.ENVELOPE])
        writer.add_adapter(samples.ADAPTER)
        writer.put_participant(samples.PARTICIPANT)
        writer.add_join_token(samples.TOKEN)
        writer.add_web_token(samples.WEB_TOKEN)
        writer.add_run(samples.RUN)
    return store


def test_every_row_comes_back_as_it_was_written(full):
    with full.read() as reader:
        assert reader.run("run-1") == samples.RUN
        assert reader.run_member("run-1", "bank") == samples.MEMBER
        assert reader.run_members("run-1") == (samples.MEMBER,)
        assert reader.round("run-1", 7) == samples.ROUND
        assert reader.participation("run-1", 7, "bank") == samples.PARTICIPATION
        assert reader.participations("run-1", 7) == (samples.PARTICIPATION,)
        assert reader.upload("run-1", 7, "bank") == samples.UPLOAD
        assert reader.uploads("run-1", 7) == (samples.UPLOAD,)
        assert reader.epoch("run-1", 2) == samples.EPOCH
        assert reader.message("run-1", MessageKind.DEPOSIT, 2, "bank") == samples.MESSAGE
        assert list(reader.messages("run-1", MessageKind.DEPOSIT, 2)) == [samples.MESSAGE]
        assert list(reader.share_envelopes("run-1", 2, "clinic")) == [samples.ENVELOPE]
        assert reader.adapter("5" * 64) == samples.ADAPTER
        assert reader.participant("bank") == samples.PARTICIPANT
        assert reader.certificate("77") == samples.CERTIFICATE
        assert reader.join_token("token-1") == samples.TOKEN
        assert reader.join_token_by_secret("8" * 64) == samples.TOKEN
        assert reader.web_token("web-1") == samples.WEB_TOKEN
        assert reader.web_token_by_secret("9" * 64) == samples.WEB_TOKEN


def test_rows_are_still_there_for_the_next_process_to_open_the_store(full, stores):
    full.close()
    with stores.open().read() as reader:
        assert reader.round("run-1", 7) == samples.ROUND


def test_times_of_another_zone_come_back_as_the_same_instant_in_utc(store):
    tokyo = datetime(2026, 3, 1, 21, 0, 0, 7, tzinfo=timezone(timedelta(hours=9)))
    with store.write() as writer:
        writer.put_participant(replace(samples.PARTICIPANT, enrolled_at=tokyo))
    with store.read() as reader:
        stored = reader.participant("bank").enrolled_at
    assert stored == tokyo
    assert stored.tzinfo is UTC


EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
_TIME = st.integers(0, 250_000_000_000_000_000).map(lambda count: EPOCH_START + timedelta(microseconds=count))
_FLOAT = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    time=_TIME,
    names=st.lists(_TEXT, max_size=3),
    start=st.binary(max_size=300),
    metrics=st.lists(st.tuples(_TEXT, _FLOAT), max_size=3),
    message=_TEXT,
    count=st.integers(0, 2**63 - 1),
    loss=_FLOAT,
)
def test_any_values_come_back_as_they_were(store, time, names, start, metrics, message, count, loss):
    round_ = replace(
        samples.round_(),
        deadline=time,
        cohort=tuple(names),
        start=start,
        metrics=tuple(metrics),
        message=message,
        epoch=count,
    )
    with pytest.raises(_Undo), store.write() as writer:
        writer.add_run(replace(samples.run(), accepted_loss=loss))
        writer.add_round(round_)
        assert repr(writer.round("run-1", 1)) == repr(round_)  # repr: -0.0 is not 0.0
        assert writer.round("run-1", 1) == round_
        assert writer.run("run-1").accepted_loss == loss
        raise _Undo


class _Undo(Exception):
    pass


@pytest.mark.parametrize(
    "change",
    [
        {"message": "a\0b"},
        {"message": "\ud800"},
        {"reason": "\0"},
        {"accepted_loss": float("nan")},
        {"accepted_loss": float("inf")},
        {"created_at": NOW.replace(tzinfo=None)},
        {"latest_round": -1},
        {"latest_round": 2**63},
    ],
    ids=str,
)
def test_a_value_that_no_database_holds_is_refused_and_nothing_is_written(store, change):
    with pytest.raises(InvalidArgument) as refused, store.write() as writer:
        writer.add_run(samples.run("run-0"))
        writer.add_run(replace(samples.run(), **change))
    assert "INSERT" not in str(refused.value)
    with store.read() as reader:
        assert reader.runs().rows == ()


def test_a_metric_that_is_not_finite_is_refused_by_its_name(store):
    with pytest.raises(InvalidArgument, match="perplexity"), store.write() as writer:
        writer.add_round(replace(samples.round_(), metrics=(("loss", 1.0), ("perplexity", float("nan")))))


# --- what is missing, what is there already --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("get", "name"),
    [
        (lambda reader: reader.run("gone"), "run 'gone'"),
        (lambda reader: reader.round("gone", 3), "round 3 of run 'gone'"),
        (lambda reader: reader.epoch("gone", 4), "key epoch 4 of run 'gone'"),
        (lambda reader: reader.adapter("beef"), "adapter 'beef'"),
        (lambda reader: reader.participant("gone"), "participant 'gone'"),
        (lambda reader: reader.certificate("99"), "certificate '99'"),
        (lambda reader: reader.join_token("gone"), "join token 'gone'"),
        (lambda reader: reader.web_token("gone"), "web token 'gone'"),
        (lambda reader: reader.charter(), "no charter"),
        (lambda reader: reader.charter_by_digest("beef"), "charter 'beef'"),
    ],
)
def test_a_getter_names_what_is_not_there(store, get, name):
    with store.read() as reader, pytest.raises(NotFound, match=name):
        get(reader)


def test_lists_and_optional_rows_are_empty_where_nothing_is(store):
    with store.read() as reader:
        assert reader.run_members("gone") == ()
        assert reader.participations("gone", 1) == ()
        assert reader.upload("gone", 1, "bank") is None
        assert reader.uploads("gone", 1) == ()
        assert reader.message("gone", MessageKind.REVEAL, 1, "bank") is None
        assert list(reader.messages("gone", MessageKind.REVEAL, 1)) == []
        assert reader.message_count("gone", MessageKind.REVEAL, 1) == 0
        assert not reader.has_message("gone", MessageKind.REVEAL, 1, "bank")
        assert list(reader.share_envelopes("gone", 1, "bank")) == []
        assert reader.receipts("gone", 1) == ()
        assert reader.run_member("gone", "bank") is None
        assert reader.participation("gone", 1, "bank") is None
        assert reader.answer("bank", "id") is None


@pytest.mark.parametrize(
    "add",
    [
        lambda writer: writer.add_run(samples.run()),
        lambda writer: writer.add_round(replace(samples.ROUND, message="other")),
        lambda writer: writer.add_epoch(samples.EPOCH),
        lambda writer: writer.add_certificate(samples.CERTIFICATE),
        lambda writer: writer.add_join_token(samples.TOKEN),
        lambda writer: writer.add_join_token(replace(samples.TOKEN, name="same-secret")),
        lambda writer: writer.add_web_token(samples.WEB_TOKEN),
        lambda writer: writer.add_web_token(replace(samples.WEB_TOKEN, name="same-secret")),
    ],
    ids=[
        "run",
        "round",
        "epoch",
        "certificate",
        "join token",
        "secret of a join token",
        "web token",
        "secret of a web token",
    ],
)
def test_adding_what_is_there_is_refused_and_the_transaction_goes_on(full, add):
    with full.write() as writer:
        with pytest.raises(AlreadyExists):
            add(writer)
        writer.put_answer("bank", "after", b"still here", at=NOW)
    with full.read() as reader:
        assert reader.answer("bank", "after") == b"still here"
        assert reader.round("run-1", 7) == samples.ROUND
        assert reader.join_tokens().rows == (samples.TOKEN,)


@pytest.mark.parametrize(
    "write",
    [
        lambda writer: writer.add_round(samples.round_(run="gone")),
        lambda writer: writer.add_epoch(replace(samples.EPOCH, run="gone")),
        lambda writer: writer.put_participation(replace(samples.PARTICIPATION, round=99)),
        lambda writer: writer.put_upload(replace(samples.UPLOAD, round=99)),
        lambda writer: writer.put_run_member(replace(samples.MEMBER, run="gone")),
        lambda writer: writer.add_message(replace(samples.MESSAGE, run="gone")),
        lambda writer: writer.add_adapter(samples.adapter("beef", 1, run="gone")),
        lambda writer: writer.add_certificate(samples.certificate("1", "gone")),
    ],
    ids=["round", "epoch", "participation", "upload", "member", "message", "adapter", "certificate"],
)
def test_a_row_that_refers_to_nothing_fails_the_whole_transaction(full, write):
    with pytest.raises(NotFound, match="does not exist"), full.write() as writer:
        writer.put_answer("bank", "with it", b"", at=NOW)
        write(writer)
    with full.read() as reader:
        assert reader.answer("bank", "with it") is None


# --- versions --------------------------------------------------------------------------------------------------------

VERSIONED = pytest.mark.parametrize(
    ("update", "row"),
    [
        (lambda writer, row: writer.update_run(row), samples.RUN),
        (lambda writer, row: writer.update_round(row), samples.ROUND),
        (lambda writer, row: writer.update_epoch(row), samples.EPOCH),
    ],
    ids=["run", "round", "epoch"],
)


@VERSIONED
def test_an_update_replaces_every_field_of_the_version_before(full, update, row):
    changed = replace(row, message="new", reason="", version=row.version + 1)
    with full.write() as writer:
        update(writer, changed)
    with full.read() as reader:
        stored = (reader.run("run-1"), reader.round("run-1", 7), reader.epoch("run-1", 2))
    assert changed in stored


@VERSIONED
@pytest.mark.parametrize("ahead", [-1, 0, 2])
def test_an_update_of_another_version_is_a_conflict_and_changes_nothing(full, update, row, ahead):
    with pytest.raises(VersionConflict), full.write() as writer:
        writer.put_answer("bank", "with it", b"", at=NOW)
        update(writer, replace(row, message="new", version=row.version + ahead))
    with full.read() as reader:
        assert row in (reader.run("run-1"), reader.round("run-1", 7), reader.epoch("run-1", 2))
        assert reader.answer("bank", "with it") is None


@VERSIONED
def test_an_update_of_what_is_not_there_is_not_found(store, update, row):
    with store.write() as writer, pytest.raises(NotFound):
        update(writer, replace(row, version=row.version + 1))


# --- transactions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt], ids=lambda error: error.__name__)
def test_nothing_is_written_when_the_block_raises(store, error):
    with pytest.raises(error), store.write() as writer:
        writer.add_run(samples.run())
        writer.append_audit(time=NOW, actor="a", action="b", subject="c", details="{}")
        raise error
    with store.read() as reader:
        assert reader.runs().rows == ()
        assert reader.audit_head().sequence == 0
    with store.write() as writer:
        writer.add_run(samples.run())  # And the next writer is not kept out.


def test_a_writer_sees_its_own_changes_and_nobody_else_does_before_it_ends(stores):
    store, other = stores.open(), stores.open()
    with store.write() as writer:
        writer.add_run(samples.run())
        assert writer.run("run-1").name == "run-1"
        for reading in (store, other):
            with reading.read() as reader:
                assert reader.runs().rows == ()
    with other.read() as reader:
        assert reader.run("run-1") == samples.run()


def test_a_write_inside_a_write_is_a_mistake_that_is_told_at_once(store):
    with store.write():
        with pytest.raises(RuntimeError, match="inside another"), store.write():
            pass
        with pytest.raises(RuntimeError, match="inside another"):
            store.acquire_lease("x", holder="a", now=NOW, until=LATER)
    with store.write() as writer:
        writer.add_run(samples.run())


def test_a_store_that_works_answers_a_ping(store):
    store.ping()


# --- protocol messages -----------------------------------------------------------------------------------------------


def test_a_repeated_message_is_harmless_and_another_one_is_refused(full):
    with full.write() as writer:
        assert writer.add_message(samples.MESSAGE) is False
        with pytest.raises(AlreadyExists, match="'bank' has already sent another deposit"):
            writer.add_message(replace(samples.MESSAGE, body=b"other"))
        assert list(writer.messages("run-1", MessageKind.DEPOSIT, 2)) == [samples.MESSAGE]


def test_messages_are_apart_by_run_kind_and_number_and_sorted_by_sender(full):
    others = [
        replace(samples.MESSAGE, kind=MessageKind.ADVERTISEMENT),
        replace(samples.MESSAGE, number=3),
        replace(samples.MESSAGE, sender="a-site"),
        replace(samples.MESSAGE, sender="Z"),
    ]
    with full.write() as writer:
        assert all(writer.add_message(message) for message in others)
    with full.read() as reader:
        assert reader.message_senders("run-1", MessageKind.DEPOSIT, 2) == ("Z", "a-site", "bank")
        messages = reader.messages("run-1", MessageKind.DEPOSIT, 2)
        assert [message.sender for message in messages] == ["Z", "a-site", "bank"]
        assert reader.message_count("run-1", MessageKind.DEPOSIT, 2) == 3
        assert reader.has_message("run-1", MessageKind.ADVERTISEMENT, 2, "bank")
        assert not reader.has_message("run-1", MessageKind.ADVERTISEMENT, 2, "Z")
        assert reader.message("run-1", MessageKind.ADVERTISEMENT, 2, "Z") is None
    with full.write() as writer:
        writer.delete_messages("run-1", MessageKind.DEPOSIT, before=2)
    with full.read() as reader:
        assert reader.message_count("run-1", MessageKind.DEPOSIT, 2) == 3
    with full.write() as writer:
        writer.delete_messages("run-1", MessageKind.DEPOSIT, before=3)
        writer.delete_messages("run-1", MessageKind.DEPOSIT, before=3)
    with full.read() as reader:
        assert list(reader.messages("run-1", MessageKind.DEPOSIT, 2)) == []
        assert reader.message_senders("run-1", MessageKind.ADVERTISEMENT, 2) == ("bank",)
        assert reader.message_senders("run-1", MessageKind.DEPOSIT, 3) == ("bank",)


def test_messages_that_are_read_one_after_the_other_are_not_all_in_memory(store):
    """Of 64 messages of 256 KiB a few at a time; the transaction serves other reads meanwhile."""
    size = 256 << 10
    with store.write() as writer:
        writer.add_run(samples.run())
        for at in range(64):
            sender = f"site-{at:02}"
            writer.add_message(ProtocolMessage("run-1", MessageKind.REVEAL, 1, sender, bytes([at]) * size))
    with store.read() as reader:
        reader.run("run-1")
        with peak_memory() as peak:
            for at, message in enumerate(reader.messages("run-1", MessageKind.REVEAL, 1)):
                assert (message.sender, message.body[0], len(message.body)) == (f"site-{at:02}", at, size)
                assert reader.message_count("run-1", MessageKind.REVEAL, 1) == 64
    assert peak.bytes < 32 * size


def test_reading_messages_may_end_before_the_last_one(full):
    others = [replace(samples.MESSAGE, sender=f"site-{at}") for at in range(40)]
    with full.write() as writer:
        assert all(writer.add_message(message) for message in others)
    with full.read() as reader:
        assert next(reader.messages("run-1", MessageKind.DEPOSIT, 2)) == samples.MESSAGE
    with full.write() as writer:  # nothing holds on to the snapshot
        writer.delete_messages("run-1", MessageKind.DEPOSIT, before=3)
        assert writer.message_count("run-1", MessageKind.DEPOSIT, 2) == 0


def test_share_envelopes_are_found_by_their_holder_in_the_order_of_their_owners(full):
    others = [
        replace(samples.ENVELOPE, owner="Z"),
        replace(samples.ENVELOPE, owner="clinic"),
        replace(samples.ENVELOPE, holder="bank"),
        replace(samples.ENVELOPE, epoch=3),
    ]
    with full.write() as writer:
        writer.add_share_envelopes(others)
        writer.add_share_envelopes([])
    with full.read() as reader:
        assert [found.owner for found in reader.share_envelopes("run-1", 2, "clinic")] == ["Z", "bank", "clinic"]
        assert [found.owner for found in reader.share_envelopes("run-1", 2, "clinic", after="bank")] == ["clinic"]
        assert list(reader.share_envelopes("run-1", 2, "clinic", after="clinic")) == []
        assert list(reader.share_envelopes("run-1", 2, "bank")) == [others[2]]
        assert list(reader.share_envelopes("run-1", 3, "clinic")) == [others[3]]


def test_a_share_envelope_is_added_once_and_with_all_of_its_deposit_or_not_at_all(full):
    with pytest.raises(AlreadyExists), full.write() as writer:
        writer.add_share_envelopes([replace(samples.ENVELOPE, owner="Z"), samples.ENVELOPE])
    with full.read() as reader:
        assert list(reader.share_envelopes("run-1", 2, "clinic")) == [samples.ENVELOPE]


def test_share_envelopes_of_earlier_epochs_are_deleted_and_no_others(full):
    with full.write() as writer:
        writer.add_run(replace(samples.RUN, name="run-2"))
        writer.add_share_envelopes([replace(samples.ENVELOPE, epoch=3), replace(samples.ENVELOPE, run="run-2")])
        writer.delete_share_envelopes("run-1", before=3)
        writer.delete_share_envelopes("run-1", before=3)
    with full.read() as reader:
        left = [(run, epoch) for run in ("run-1", "run-2") for epoch in (2, 3)]
        assert [bool(list(reader.share_envelopes(run, epoch, "clinic"))) for run, epoch in left] == [
            False,
            True,
            True,
            False,
        ]


def test_receipts_are_those_of_complete_uploads(full):
    with full.write() as writer:
        writer.put_upload(replace(samples.UPLOAD, participant="clinic", is_complete=False, receipt=b""))
        writer.put_upload(replace(samples.UPLOAD, participant="Z", receipt=b"signed"))
        writer.put_upload(replace(samples.UPLOAD, round=8))
        writer.add_round(replace(samples.ROUND, number=8))
    with full.read() as reader:
        assert reader.receipts("run-1", 7) == (("Z", b"signed"), ("bank", samples.UPLOAD.receipt))


# --- what is put -----------------------------------------------------------------------------------------------------


def test_put_writes_over_what_was_there(full):
    upload = replace(samples.UPLOAD, durable_chunks=8, receipt=b"r")
    participation = replace(samples.PARTICIPATION, message="later")
    member = replace(samples.MEMBER, joined=True)
    with full.write() as writer:
        writer.put_upload(upload)
        writer.put_participation(participation)
        writer.put_run_member(member)
        writer.put_answer("bank", "id", b"one", at=NOW)
        writer.put_answer("bank", "id", b"two", at=LATER)
        writer.put_answer("clinic", "id", b"hers", at=NOW)
    with full.read() as reader:
        assert reader.upload("run-1", 7, "bank") == upload
        assert reader.participations("run-1", 7) == (participation,)
        assert reader.run_members("run-1") == (member,)
        assert reader.answer("bank", "id") == b"two"
        assert reader.answer("clinic", "id") == b"hers"


def test_answers_given_before_a_moment_are_deleted_and_no_others(store):
    with store.write() as writer:
        writer.put_answer("bank", "early", b"one", at=NOW)
        writer.put_answer("bank", "late", b"two", at=LATER)
        writer.delete_answers(before=LATER)
    with store.read() as reader:
        assert reader.answer("bank", "early") is None
        assert reader.answer("bank", "late") == b"two"


# --- adapters --------------------------------------------------------------------------------------------------------


def test_publishing_the_same_adapter_again_is_harmless_and_keeps_the_first(full):
    with full.write() as writer:
        writer.add_adapter(replace(samples.ADAPTER, created_at=LATER, manifest=b"later"))
    with full.read() as reader:
        assert reader.adapter("5" * 64) == samples.ADAPTER


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (samples.adapter("5" * 64, 8), "already published by round 7 of run 'run-1'"),
        (samples.adapter("beef", 7), "round 7 of run 'run-1' has already published another"),
    ],
    ids=["digest of another round", "second adapter of a round"],
)
def test_one_adapter_has_one_round_and_a_round_one_adapter(full, adapter, said):
    with full.write() as writer, pytest.raises(AlreadyExists, match=said):
        writer.add_adapter(adapter)


def test_an_adapters_state_changes_and_its_measured_loss_stays_until_measured_again(full):
    with full.write() as writer:
        writer.set_adapter_state("5" * 64, AdapterState.ACCEPTED, heldout_loss=None)
        assert writer.adapter("5" * 64) == replace(samples.ADAPTER, state=AdapterState.ACCEPTED, heldout_loss=2.5)
        writer.set_adapter_state("5" * 64, AdapterState.CANDIDATE, heldout_loss=0.0)
        assert writer.adapter("5" * 64) == replace(samples.ADAPTER, state=AdapterState.CANDIDATE, heldout_loss=0.0)
        with pytest.raises(NotFound):
            writer.set_adapter_state("beef", AdapterState.ACCEPTED, heldout_loss=1.0)


# --- identities ------------------------------------------------------------------------------------------------------


def test_touching_a_participant_changes_only_when_it_was_seen_and_what_it_runs(store):
    with store.write() as writer:
        writer.put_participant(samples.participant("bank"))
        writer.touch_participant("bank", seen_at=LATER, software_version="9")
        with pytest.raises(NotFound):
            writer.touch_participant("gone", seen_at=LATER, software_version="9")
    with store.read() as reader:
        assert reader.participant("bank") == replace(
            samples.participant("bank"), last_seen_at=LATER, software_version="9"
        )


@pytest.fixture
def two_sites(store):
    with store.write() as writer:
        for name, serials in (("bank", ("1", "2")), ("clinic", ("3",))):
            writer.put_participant(samples.participant(name))
            for serial in serials:
                writer.add_certificate(samples.certificate(serial, name))
    return store


def test_revoking_a_participant_revokes_its_certificates_and_nobody_elses(two_sites):
    with two_sites.write() as writer:
        writer.revoke_participant("bank", at=NOW, reason="left the federation")
    with two_sites.read() as reader:
        assert reader.participant("bank").state is ParticipantState.REVOKED
        assert reader.participant("bank").revoke_reason == "left the federation"
        assert [reader.certificate(serial).revoked_at for serial in "123"] == [NOW, NOW, None]
        assert reader.is_revoked(participant="bank", serial="of a foreign CA")
        assert reader.is_revoked(participant="clinic", serial="1")  # The certificate was, whoever shows it.
        assert not reader.is_revoked(participant="clinic", serial="3")
        assert not reader.is_revoked(participant="unknown", serial="unknown")


def test_revoking_again_keeps_the_first_reason_and_time(two_sites):
    with two_sites.write() as writer:
        writer.revoke_participant("bank", at=NOW, reason="first")
        writer.revoke_participant("bank", at=LATER, reason="second")
        assert writer.participant("bank").revoke_reason == "first"
        assert writer.certificate("1").revoked_at == NOW
        with pytest.raises(NotFound):
            writer.revoke_participant("gone", at=NOW, reason="")


def test_a_join_token_is_used_once(store):
    fresh = samples.token("t")
    used = replace(fresh, used_at=NOW, used_certificate="1")
    with store.write() as writer:
        writer.add_join_token(fresh)
        writer.update_join_token(used)
        writer.update_join_token(used)  # The same use again, after an answer that was lost.
    for change in (
        {"used_certificate": "2"},
        {"used_at": LATER},
        {"used_at": None, "used_certificate": None},
    ):
        with store.write() as writer, pytest.raises(VersionConflict):
            writer.update_join_token(replace(used, **change))
    with store.read() as reader:
        assert reader.join_token("t") == used


def test_a_revoked_join_token_stays_revoked(store):
    with store.write() as writer:
        writer.add_join_token(samples.token("t"))
        writer.update_join_token(replace(samples.token("t"), revoked_at=NOW))
        with pytest.raises(VersionConflict):
            writer.update_join_token(samples.token("t"))
        with pytest.raises(NotFound):
            writer.update_join_token(samples.token("gone"))


def test_a_web_token_stays_revoked_since_the_first_time(store):
    with store.write() as writer:
        writer.add_web_token(samples.web_token("t"))
        writer.revoke_web_token("t", at=NOW)
        writer.revoke_web_token("t", at=LATER)
        with pytest.raises(NotFound):
            writer.revoke_web_token("gone", at=NOW)
    with store.read() as reader:
        assert reader.web_token("t").revoked_at == NOW


@pytest.mark.parametrize("kind", ["join_token", "web_token"])
def test_a_wrong_secret_is_not_repeated_in_the_answer(store, kind):
    with store.read() as reader, pytest.raises(NotFound) as unknown:
        getattr(reader, f"{kind}_by_secret")("abc123")
    assert "abc123" not in str(unknown.value)


# --- charter ---------------------------------------------------------------------------------------------------------


def test_the_charter_published_last_is_in_force_also_when_it_is_an_earlier_one_again(store):
    for charter, digest in ((b"one", "1"), (b"two", "2"), (b"one", "1")):
        with store.write() as writer:
            writer.publish_charter(charter, digest, at=NOW)
        with store.read() as reader:
            assert reader.charter() == charter
    with store.read() as reader:
        assert reader.charter_by_digest("2") == b"two"


def test_runs_are_found_by_their_states(store):
    with store.write() as writer:
        for age, state in enumerate(RunState):
            writer.add_run(samples.run(state.value, age_hours=age, state=state))
    with store.read() as reader:
        found = reader.runs(states=[RunState.FAILED, RunState.RUNNING]).rows
        assert [run.name for run in found] == ["running", "failed"]
        assert len(reader.runs().rows) == len(RunState)
