"""AdminService as operators call it: over mTLS, against the whole coordinator with its database."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from accord.v1 import admin_pb2 as pb
from accord.v1 import admin_pb2_grpc, resources_pb2, round_pb2, round_pb2_grpc
from common.certificates import parse_certificates, serial_text, spki_sha256
from common.charter import Charter
from common.errors import (
    AlreadyExists,
    CertificateRevoked,
    CharterInvalid,
    InvalidArgument,
    NotFound,
    OutOfTurn,
    PermissionDenied,
    PlanInvalid,
    TransitionNotAllowed,
    Unauthenticated,
)
from common.identifiers import Role
from common.join_token import from_text
from common.manifest import verify_manifest
from common.plan import Plan
from common.rpc.status import raised_as_errors
from common.states import RoundKind, RoundState
from coordinator import web_tokens
from coordinator.keystore import PkiFolder
from coordinator.pki import key_pem
from coordinator.rounds.events import Opened, RunPaused, RunStarted
from coordinator.rounds.lifecycle import advance_round, advance_run
from coordinator.rounds.model import (
    Adapter,
    AdapterState,
    Participation,
    ParticipationState,
    Round,
    RunMember,
)
from tests.rpc.coordinator import MODEL, SITES, RunningCoordinator, running_coordinator

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    with running_coordinator(tmp_path_factory.mktemp("admin")) as running:
        for site in SITES:
            running.enroll(site)
        publish(running)
        yield running


def publish(running: RunningCoordinator) -> pb.DraftCharterResponse:
    admin = running.admin()
    draft = admin.DraftCharter(pb.DraftCharterRequest(participant_ids=SITES))
    admin.PublishCharter(pb.PublishCharterRequest(charter_json=draft.charter_json))
    return draft


def settings(**changes: object) -> resources_pb2.PlanSettings:
    return resources_pb2.PlanSettings(base_model_json=MODEL.to_json(), rank=2, **changes)  # type: ignore[arg-type]


def create_run(running: RunningCoordinator, name: str = "", **changes: object) -> resources_pb2.Run:
    request = pb.CreateRunRequest(run_id=name or f"run-{next(NUMBERS)}", settings=settings(**changes))
    return running.admin().CreateRun(request).run


def open_round(running: RunningCoordinator, run_name: str) -> Round:
    """The run's first round in TRAINING, as the driver leaves it; the test holds the run's lease, so it stays there."""
    now = datetime.now(UTC)
    assert running.store.acquire_lease(run_name, holder="test", now=now, until=now + timedelta(hours=1))
    with running.store.write() as writer:
        run = writer.run(run_name.removeprefix("runs/"))
        round_ = Round(
            run=run.name,
            number=1,
            kind=RoundKind.TRAIN,
            state=RoundState.FORMING,
            base_adapter=run.accepted_adapter,
            instruction_set="",
            created_at=now,
            phase_started_at=now,
            deadline=now + timedelta(hours=1),
        )
        writer.add_round(round_)
        round_ = advance_round(round_, Opened(now, now + timedelta(hours=6)))
        writer.update_round(round_)
        writer.update_run(replace(run, latest_round=1, version=run.version + 1))
    return round_


# --- who may --------------------------------------------------------------------------------------------------------


def calls(stub: admin_pb2_grpc.AdminServiceStub) -> dict[str, object]:
    return {
        name: call
        for name, call in vars(stub).items()
        if isinstance(call, grpc.UnaryUnaryMultiCallable | grpc.UnaryStreamMultiCallable)
    }


def refusal(call: object) -> grpc.StatusCode | None:
    """The status with which an empty request ends; None if it was answered."""
    name = call._method.decode().rsplit("/", 1)[1]  # type: ignore[attr-defined]
    request = getattr(pb, f"{name}Request")()
    try:
        answer = call(request, timeout=10)  # type: ignore[operator]
        if isinstance(call, grpc.UnaryStreamMultiCallable):
            next(answer)
    except grpc.RpcError as error:
        return error.code()
    return None


CHANGES_RUNS = {"CreateRun", "StartRun", "PauseRun", "ResumeRun", "CancelRun", "RollBackRun"}
CHANGES_MEMBERS = {
    *("CreateJoinToken", "RevokeJoinToken", "RevokeParticipant", "DraftCharter", "PublishCharter"),
    *("CreateWebToken", "RevokeWebToken"),
}


@pytest.mark.parametrize(
    ("role", "forbidden"),
    [
        (Role.VIEWER, CHANGES_RUNS | CHANGES_MEMBERS),
        (Role.SECURITY_OFFICER, CHANGES_RUNS),
        (Role.OPERATOR, set()),
    ],
)
def test_every_call_is_open_to_its_roles_and_to_no_other(coordinator, role, forbidden):
    stub = coordinator.admin(f"a-{role.value}", role)
    every = calls(stub)
    assert set(every) | {"ImportAdapter"} == set(pb.DESCRIPTOR.services_by_name["AdminService"].methods_by_name)
    refused = {name for name, call in every.items() if refusal(call) is grpc.StatusCode.PERMISSION_DENIED}
    assert refused == forbidden


def test_a_participant_may_call_nothing_here(coordinator):
    with coordinator.participant_channel("bank", coordinator.addresses.admin) as channel:
        found = {refusal(call) for call in calls(admin_pb2_grpc.AdminServiceStub(channel)).values()}
    assert found == {grpc.StatusCode.PERMISSION_DENIED}


def test_a_revoked_operator_is_refused_at_the_next_call(coordinator):
    stub = coordinator.admin("mallory")
    stub.GetFederation(pb.GetFederationRequest())
    folder = coordinator.operator_folder("mallory")
    certificate = parse_certificates((folder / "operator.pem").read_bytes(), what="operator")[0]
    PkiFolder(coordinator.config.pki_folder).revoke_serial(serial_text(certificate))
    with pytest.raises(CertificateRevoked), raised_as_errors():
        stub.GetFederation(pb.GetFederationRequest())


# --- the federation and its members -----------------------------------------------------------------------------------


def test_the_federation_is_shown_at_a_glance(coordinator):
    answer = coordinator.admin().GetFederation(pb.GetFederationRequest())
    assert answer.federation == "lab"
    assert answer.charter_digest == coordinator.admin().GetPublishedCharter(pb.GetPublishedCharterRequest()).digest
    assert answer.active_participants >= len(SITES)
    assert answer.ca_expire_time.ToDatetime(tzinfo=UTC) > datetime.now(UTC) + timedelta(days=3000)


def test_a_join_token_shows_its_secret_once(coordinator):
    request = pb.CreateJoinTokenRequest(request_id="token-once", participant_id="newcomer", ttl_seconds=600)
    first = coordinator.admin().CreateJoinToken(request)
    again = coordinator.admin().CreateJoinToken(request)
    invitation = from_text(first.token)
    assert invitation.participant == "newcomer"
    assert invitation.enrollment_address == coordinator.addresses.enrollment
    assert invitation.coordinator_address == coordinator.addresses.participants
    assert again.token == ""
    assert again.join_token == first.join_token
    with coordinator.store.read() as reader:
        stored = reader.answer("operators/alice", "token-once")
    assert invitation.secret.encode() not in stored


def test_a_join_token_lives_a_day_unless_said_otherwise_and_never_longer_than_thirty(coordinator):
    token = coordinator.admin().CreateJoinToken(pb.CreateJoinTokenRequest(participant_id="day")).join_token
    assert token.expire_time.seconds - token.create_time.seconds == 86_400
    with pytest.raises(InvalidArgument, match="30 days"), raised_as_errors():
        coordinator.admin().CreateJoinToken(pb.CreateJoinTokenRequest(participant_id="day", ttl_seconds=2_592_001))


def test_a_revoked_join_token_stays_revoked_and_a_used_one_cannot_be(coordinator):
    admin = coordinator.admin()
    token = admin.CreateJoinToken(pb.CreateJoinTokenRequest(participant_id="quick")).join_token
    for _ in range(2):
        revoked = admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(name=token.name)).join_token
        assert revoked.state == resources_pb2.JOIN_TOKEN_STATE_REVOKED
    used = admin.CreateJoinToken(pb.CreateJoinTokenRequest(participant_id="quick")).join_token
    with coordinator.store.write() as writer:
        row = writer.join_token(used.name.removeprefix("joinTokens/"))
        writer.update_join_token(replace(row, used_at=datetime.now(UTC), used_certificate="ab"))
    with pytest.raises(OutOfTurn, match="participants/quick"), raised_as_errors():
        admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(name=used.name))


def test_a_web_token_shows_its_secret_once_and_is_kept_as_a_digest(coordinator):
    request = pb.CreateWebTokenRequest(request_id="web-once", label="wallboard", ttl_seconds=600)
    first = coordinator.admin().CreateWebToken(request)
    again = coordinator.admin().CreateWebToken(request)
    assert first.token.startswith(web_tokens.PREFIX)
    assert again == pb.CreateWebTokenResponse(web_token=first.web_token)
    assert first.web_token.creator == "operators/alice"
    assert first.web_token.expire_time.seconds - first.web_token.create_time.seconds == 600
    with coordinator.store.read() as reader:
        row = reader.web_token(first.web_token.name.removeprefix("webTokens/"))
        stored = reader.answer("operators/alice", "web-once")
        assert web_tokens.admit(reader, first.token, now=datetime.now(UTC)) == row
    assert row.secret_sha256 == hashlib.sha256(first.token.encode()).hexdigest()
    assert first.token.encode() not in stored
    listed = coordinator.admin("a-viewer", Role.VIEWER).ListWebTokens(pb.ListWebTokensRequest())
    assert first.web_token in listed.web_tokens
    assert row.secret_sha256 not in str(listed)


def test_a_web_token_that_is_over_or_revoked_or_made_up_admits_nobody_and_says_why(coordinator):
    made = coordinator.admin().CreateWebToken(pb.CreateWebTokenRequest(label="short", ttl_seconds=60))
    with coordinator.store.read() as reader:
        with pytest.raises(Unauthenticated, match="has ended"):
            web_tokens.admit(reader, made.token, now=datetime.now(UTC) + timedelta(seconds=61))
        with pytest.raises(Unauthenticated, match="nobody here knows"):
            web_tokens.admit(reader, made.token[:-4] + "AAAA", now=datetime.now(UTC))
        with pytest.raises(Unauthenticated, match="begins with accord-web-") as refused:
            web_tokens.admit(reader, "my-password", now=datetime.now(UTC))
    assert "my-password" not in str(refused.value)
    for _ in range(2):
        revoked = coordinator.admin().RevokeWebToken(pb.RevokeWebTokenRequest(name=made.web_token.name)).web_token
        assert revoked.state == resources_pb2.WEB_TOKEN_STATE_REVOKED
    with coordinator.store.read() as reader, pytest.raises(Unauthenticated, match="was revoked"):
        web_tokens.admit(reader, made.token, now=datetime.now(UTC))
    lines = [
        event.action
        for event in coordinator.admin()
        .ListAuditEvents(pb.ListAuditEventsRequest(subject=made.web_token.name, newest_first=True))
        .events
    ]
    assert lines == ["web_token_revoked", "web_token_created"]


@pytest.mark.parametrize(
    ("label", "life", "message"),
    [
        ("", 60, "label"),
        (" ", 60, "label"),
        ("x" * 81, 60, "label"),
        ("a\nb", 60, "label"),
        ("x", 7_776_001, "90 days"),
    ],
)
def test_a_web_token_says_whom_it_is_for_and_ends_within_ninety_days(coordinator, label, life, message):
    with pytest.raises(InvalidArgument, match=message), raised_as_errors():
        coordinator.admin().CreateWebToken(pb.CreateWebTokenRequest(label=label, ttl_seconds=life))


def test_a_revoked_participant_is_refused_at_its_next_call_and_cannot_be_invited_again(coordinator):
    coordinator.enroll("leaver")
    admin = coordinator.admin("officer", Role.SECURITY_OFFICER)
    open_token = admin.CreateJoinToken(pb.CreateJoinTokenRequest(participant_id="leaver")).join_token
    answer = admin.RevokeParticipant(pb.RevokeParticipantRequest(name="participants/leaver", reason="key lost"))
    assert answer.participant.state == resources_pb2.PARTICIPANT_STATE_REVOKED
    assert answer.participant.revoke_reason == "key lost"
    channel = coordinator.participant_channel("leaver", coordinator.addresses.participants)
    with channel, pytest.raises(CertificateRevoked, match="key lost"), raised_as_errors():
        round_pb2_grpc.RoundServiceStub(channel).GetAssignment(round_pb2.GetAssignmentRequest())
    with pytest.raises(CertificateRevoked), raised_as_errors():
        admin.CreateJoinToken(pb.CreateJoinTokenRequest(participant_id="leaver"))
    listed = admin.ListJoinTokens(pb.ListJoinTokensRequest(page_size=500)).join_tokens
    states = {token.name: token.state for token in listed}
    assert states[open_token.name] == resources_pb2.JOIN_TOKEN_STATE_REVOKED


def test_a_revocation_ends_calls_that_are_open(coordinator):
    coordinator.enroll("poller")
    key = ec.generate_private_key(ec.SECP256R1())
    issued = coordinator.authority.issue_participant(key.public_key(), "poller", now=datetime.now(UTC))
    with coordinator.store.write() as writer:
        row = writer.participant("poller")
        writer.put_participant(
            replace(
                row,
                identity_key_sha256=spki_sha256(key.public_key()),
                certificate_serial=serial_text(issued.certificate),
            )
        )
    channel = coordinator.channel(coordinator.addresses.participants, issued.chain_pem.encode(), key_pem(key))
    with channel:
        stub = round_pb2_grpc.RoundServiceStub(channel)
        known = stub.GetAssignment(round_pb2.GetAssignmentRequest())
        waiting = stub.GetAssignment.future(
            round_pb2.GetAssignmentRequest(known_tag=known.tag, wait_seconds=50), timeout=60
        )
        coordinator.admin().RevokeParticipant(pb.RevokeParticipantRequest(name="participants/poller"))
        with pytest.raises(CertificateRevoked), raised_as_errors():
            waiting.result()


# --- the charter ------------------------------------------------------------------------------------------------------


def test_a_draft_charter_names_the_members_with_their_keys_and_publishes_nothing(coordinator):
    admin = coordinator.admin()
    before = admin.GetPublishedCharter(pb.GetPublishedCharterRequest()).digest
    draft = admin.DraftCharter(
        pb.DraftCharterRequest(participant_ids=SITES, least_cohort=3, colluders=1, base_model_digests=[MODEL.digest])
    )
    charter = Charter.from_bytes(draft.charter_json.encode())
    assert charter.member_ids == SITES
    assert charter.colluders == 1
    left_out = admin.DraftCharter(pb.DraftCharterRequest(participant_ids=SITES))
    assert Charter.from_bytes(left_out.charter_json.encode()).colluders is None
    assert charter.digest == draft.digest != before
    bank = admin.GetParticipant(pb.GetParticipantRequest(name="participants/bank")).participant
    assert charter.members[0].identity_key_sha256 == bank.identity_key_sha256
    assert admin.GetPublishedCharter(pb.GetPublishedCharterRequest()).digest == before


def test_a_charter_keeps_its_digest_however_it_is_indented(coordinator):
    draft = publish(coordinator)
    indented = json.dumps(json.loads(draft.charter_json), indent=4)
    answer = coordinator.admin().PublishCharter(pb.PublishCharterRequest(charter_json=indented))
    assert answer.digest == draft.digest


def test_a_charter_of_another_coordinator_or_with_another_key_is_not_published(coordinator):
    charter = json.loads(publish(coordinator).charter_json)
    charter["coordinator_public_key"] = "00" * 32
    charter["members"][0]["identity_key_sha256"] = "11" * 32
    with pytest.raises(CharterInvalid) as refused, raised_as_errors():
        coordinator.admin().PublishCharter(pb.PublishCharterRequest(charter_json=json.dumps(charter)))
    assert "coordinator_public_key" in refused.value.message
    assert "bank is enrolled with another key" in refused.value.message


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_new_run_has_a_whole_plan_and_a_signed_initial_adapter(coordinator):
    run = create_run(coordinator, seed=5)
    plan = Plan.from_bytes(run.plan_json.encode())
    assert hashlib.sha256(run.plan_json.encode()).hexdigest() == run.plan_digest
    assert plan.run == run.name.removeprefix("runs/")
    assert plan.training.seed == 5
    assert plan.adapter.target_modules == ("q_proj", "v_proj")
    assert run.state == resources_pb2.RUN_STATE_CREATED
    adapter = coordinator.admin().ListAdapters(pb.ListAdaptersRequest(run=run.name)).adapters[0]
    assert adapter.name == f"adapters/{run.accepted_adapter_digest}"
    assert adapter.state == resources_pb2.ADAPTER_STATE_ACCEPTED
    manifest = verify_manifest(
        adapter.manifest_json.encode(),
        bytes.fromhex(adapter.manifest_signature),
        public_key=plan.coordinator_public_key,
        digest=run.accepted_adapter_digest,
    )
    assert (manifest.round, manifest.parent, manifest.survivor_count) == (0, None, 0)
    assert manifest.plan_digest == run.plan_digest


def test_two_runs_of_one_seed_can_live_side_by_side(coordinator):
    first, second = create_run(coordinator, seed=9), create_run(coordinator, seed=9)
    assert first.accepted_adapter_digest != second.accepted_adapter_digest


def test_an_exported_adapter_has_the_bytes_of_its_digest_from_any_offset(coordinator):
    digest = create_run(coordinator).accepted_adapter_digest
    messages = list(coordinator.admin().ExportAdapter(pb.ExportAdapterRequest(digest=digest)))
    assert json.loads(messages[0].peft_config_json)["r"] == 2
    content = b"".join(message.chunk for message in messages)
    assert hashlib.sha256(content).hexdigest() == digest
    tail = b"".join(
        message.chunk
        for message in coordinator.admin().ExportAdapter(pb.ExportAdapterRequest(digest=digest, offset=100))
    )
    assert tail == content[100:]
    with pytest.raises(InvalidArgument, match="behind the end"), raised_as_errors():
        list(coordinator.admin().ExportAdapter(pb.ExportAdapterRequest(digest=digest, offset=len(content) + 1)))


def test_a_repeated_request_gets_the_first_answer_and_does_nothing(coordinator):
    request = pb.CreateRunRequest(request_id="create-once", run_id="once", settings=settings())
    first = coordinator.admin().CreateRun(request)
    coordinator.admin().StartRun(pb.StartRunRequest(name="runs/once"))
    assert coordinator.admin().CreateRun(request) == first
    start = pb.StartRunRequest(request_id="start-twice", name=create_run(coordinator).name)
    assert coordinator.admin().StartRun(start) == coordinator.admin().StartRun(start)


def test_a_request_id_of_another_request_is_refused(coordinator):
    run = create_run(coordinator)
    coordinator.admin().StartRun(pb.StartRunRequest(request_id="mine", name=run.name))
    with pytest.raises(AlreadyExists, match="request_id"), raised_as_errors():
        coordinator.admin().PauseRun(pb.PauseRunRequest(request_id="mine", name=run.name))
    # Another person's ids are their own.
    coordinator.admin("bob").PauseRun(pb.PauseRunRequest(request_id="mine", name=run.name))


def test_a_run_id_is_never_used_twice(coordinator):
    name = create_run(coordinator).name.removeprefix("runs/")
    with pytest.raises(AlreadyExists, match=name), raised_as_errors():
        coordinator.admin().CreateRun(pb.CreateRunRequest(request_id="other", run_id=name, settings=settings(rounds=7)))


def test_a_plan_with_mistakes_is_refused_with_all_of_them(coordinator):
    request = pb.CreateRunRequest(
        run_id="wrong",
        settings=settings(
            method="magic",
            rounds=5000,
            least_cohort=2,
            target_modules=["k_proj"],
            forming=resources_pb2.PhaseLimits(quorum=9),
        ),
    )
    with pytest.raises(PlanInvalid) as refused, raised_as_errors():
        coordinator.admin().CreateRun(request)
    for part in ("'magic'", "5000", "least_cohort", "k_proj", "quorum of forming is 9"):
        assert part in refused.value.message
    with pytest.raises(NotFound), raised_as_errors():
        coordinator.admin().GetRun(pb.GetRunRequest(name="runs/wrong"))


def test_a_run_goes_through_its_states_and_refuses_steps_that_do_not_apply(coordinator):
    admin, name = coordinator.admin(), create_run(coordinator).name
    for refused in (admin.PauseRun, admin.ResumeRun):
        kind = pb.PauseRunRequest if refused is admin.PauseRun else pb.ResumeRunRequest
        with pytest.raises(TransitionNotAllowed), raised_as_errors():
            refused(kind(name=name))
    assert admin.StartRun(pb.StartRunRequest(name=name)).run.state == resources_pb2.RUN_STATE_RUNNING
    assert admin.PauseRun(pb.PauseRunRequest(name=name)).run.state == resources_pb2.RUN_STATE_PAUSED
    assert admin.ResumeRun(pb.ResumeRunRequest(name=name)).run.state == resources_pb2.RUN_STATE_RUNNING
    cancelled = admin.CancelRun(pb.CancelRunRequest(name=name, reason="wrong data")).run
    assert cancelled.state == resources_pb2.RUN_STATE_CANCELLED
    assert cancelled.message == "wrong data"
    with pytest.raises(TransitionNotAllowed), raised_as_errors():
        admin.StartRun(pb.StartRunRequest(name=name))


def test_a_cancelled_run_takes_its_open_round_with_it_and_keeps_its_adapter(coordinator):
    run = create_run(coordinator)
    round_ = open_round(coordinator, run.name)
    coordinator.admin().CancelRun(pb.CancelRunRequest(name=run.name, reason="enough"))
    shown = coordinator.admin().GetRound(pb.GetRoundRequest(name=round_.name)).round
    assert shown.state == resources_pb2.ROUND_STATE_CANCELLED
    assert shown.message == "enough"
    digest = run.accepted_adapter_digest
    assert coordinator.admin().GetRun(pb.GetRunRequest(name=run.name)).run.accepted_adapter_digest == digest


def publish_adapter(running: RunningCoordinator, run_name: str, number: int, state: AdapterState) -> str:
    """A row like the one that a round publishes."""
    digest = hashlib.sha256(f"{run_name}/{number}".encode()).hexdigest()
    with running.store.write() as writer:
        run = writer.run(run_name.removeprefix("runs/"))
        parent = writer.adapter(run.newest_adapter)
        writer.add_adapter(
            Adapter(
                digest=digest,
                run=run.name,
                round=number,
                state=state,
                size_bytes=1,
                parent=parent.digest,
                manifest=parent.manifest,
                manifest_signature=parent.manifest_signature,
                created_at=parent.created_at + timedelta(seconds=number),
                heldout_loss=2.5 if state is AdapterState.ACCEPTED else None,
            )
        )
        after = advance_run(advance_run(run, RunStarted(run.created_at)), RunPaused(run.created_at))
        accepted = digest if state is AdapterState.ACCEPTED else run.accepted_adapter
        candidate = digest if state is AdapterState.CANDIDATE else None
        writer.update_run(
            replace(after, accepted_adapter=accepted, candidate_adapter=candidate, version=run.version + 1)
        )
    return digest


def test_a_run_rolls_back_to_an_accepted_adapter_and_sets_its_candidate_aside(coordinator):
    run = create_run(coordinator)
    initial = run.accepted_adapter_digest
    candidate = publish_adapter(coordinator, run.name, 1, AdapterState.CANDIDATE)
    request = pb.RollBackRunRequest(name=run.name, adapter_digest=initial)
    after = coordinator.admin().RollBackRun(request).run
    assert after.adapter_digest == after.accepted_adapter_digest == initial
    adapters = coordinator.admin().ListAdapters(pb.ListAdaptersRequest(run=run.name)).adapters
    states = {adapter.name: adapter.state for adapter in adapters}
    assert states[f"adapters/{candidate}"] == resources_pb2.ADAPTER_STATE_SET_ASIDE
    with pytest.raises(OutOfTurn, match="set_aside"), raised_as_errors():
        coordinator.admin().RollBackRun(pb.RollBackRunRequest(name=run.name, adapter_digest=candidate))


def test_a_run_does_not_roll_back_while_it_runs_or_a_round_is_open_or_to_a_strange_adapter(coordinator):
    admin, run, other = coordinator.admin(), create_run(coordinator), create_run(coordinator)
    strange = pb.RollBackRunRequest(name=run.name, adapter_digest=other.accepted_adapter_digest)
    with pytest.raises(OutOfTurn, match=other.name), raised_as_errors():
        admin.RollBackRun(strange)
    request = pb.RollBackRunRequest(name=run.name, adapter_digest=run.accepted_adapter_digest)
    open_round(coordinator, run.name)
    with pytest.raises(OutOfTurn, match="rounds/1"), raised_as_errors():
        admin.RollBackRun(request)
    admin.StartRun(pb.StartRunRequest(name=other.name))
    with pytest.raises(TransitionNotAllowed), raised_as_errors():
        admin.RollBackRun(pb.RollBackRunRequest(name=other.name, adapter_digest=other.accepted_adapter_digest))


def test_a_run_shows_who_joined_who_declined_and_when_they_were_last_heard(coordinator):
    run = create_run(coordinator)
    now = datetime.now(UTC)
    with coordinator.store.write() as writer:
        name = run.name.removeprefix("runs/")
        writer.put_run_member(RunMember(name, "bank", True, now))
        writer.put_run_member(RunMember(name, "clinic", False, now, "POLICY_REFUSAL", "rank 2 is not allowed here"))
        writer.touch_participant("bank", seen_at=now, software_version="0.1.0")
    bank, clinic = coordinator.admin().GetRun(pb.GetRunRequest(name=run.name)).run.members
    assert bank.joined
    assert bank.last_seen_time.ToDatetime(tzinfo=UTC) == now
    assert (clinic.joined, clinic.reason, clinic.message) == (False, "POLICY_REFUSAL", "rank 2 is not allowed here")


def test_a_round_shows_who_is_in_and_who_is_out_and_why(coordinator):
    run = create_run(coordinator)
    round_ = open_round(coordinator, run.name)
    now = datetime.now(UTC)
    with coordinator.store.write() as writer:
        writer.put_participation(
            Participation(
                round_.run,
                1,
                "bank",
                ParticipationState.PRESENT,
                now,
                activity="training",
                progress_done=3,
                progress_total=9,
            )
        )
        writer.put_participation(
            Participation(round_.run, 1, "clinic", ParticipationState.FAILED, now, "DATA_INVALID", "no record is left")
        )
    shown = coordinator.admin().GetRound(pb.GetRoundRequest(name=round_.name)).round
    bank, clinic = shown.participations
    assert (bank.activity, bank.progress_done, bank.progress_total) == ("training", 3, 9)
    assert (clinic.reason, clinic.message) == ("DATA_INVALID", "no record is left")
    assert shown.HasField("deadline_time")
    listed = coordinator.admin().ListRounds(pb.ListRoundsRequest(run=run.name)).rounds
    assert [entry.name for entry in listed] == [round_.name]


def test_a_basic_view_of_rounds_counts_those_whom_the_full_one_names(coordinator):
    run = create_run(coordinator)
    round_ = open_round(coordinator, run.name)
    with coordinator.store.write() as writer:
        known = writer.round(round_.run, 1)
        writer.update_round(
            replace(known, cohort=SITES, survivors=SITES[:2], metrics=(("loss", 1.5),), version=known.version + 1)
        )
        writer.put_participation(Participation(round_.run, 1, "bank", ParticipationState.UPLOADED, datetime.now(UTC)))
    request = pb.ListRoundsRequest(run=run.name, view=resources_pb2.ROUND_VIEW_BASIC)
    (basic,) = coordinator.admin().ListRounds(request).rounds
    (full,) = coordinator.admin().ListRounds(pb.ListRoundsRequest(run=run.name)).rounds
    assert (basic.cohort_size, basic.survivor_count) == (len(full.cohort), len(full.survivors)) == (3, 2)
    assert not basic.cohort
    assert not basic.survivors
    assert not basic.participations
    assert (basic.metrics, basic.number) == (full.metrics, full.number)
    assert len(full.participations) == 1


# --- pages and names --------------------------------------------------------------------------------------------------


def test_listings_come_in_pages_without_gaps_or_repeats(coordinator):
    created = [create_run(coordinator).name for _ in range(5)]
    found: list[str] = []
    token = ""
    while True:
        page = coordinator.admin().ListRuns(pb.ListRunsRequest(page_size=2, page_token=token))
        assert len(page.runs) <= 2
        found += [run.name for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert len(found) == len(set(found))
    assert [name for name in found if name in created] == created[::-1]


def test_runs_are_listed_by_state(coordinator):
    name = create_run(coordinator).name
    coordinator.admin().CancelRun(pb.CancelRunRequest(name=name))
    cancelled = coordinator.admin().ListRuns(
        pb.ListRunsRequest(page_size=500, states=[resources_pb2.RUN_STATE_CANCELLED])
    )
    assert name in {run.name for run in cancelled.runs}
    assert {run.state for run in cancelled.runs} == {resources_pb2.RUN_STATE_CANCELLED}


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("GetRun", pb.GetRunRequest(name="demo")),
        ("GetRound", pb.GetRoundRequest(name="runs/demo/rounds/zero")),
        ("GetParticipant", pb.GetParticipantRequest(name="bank")),
        ("RevokeJoinToken", pb.RevokeJoinTokenRequest(name="tokens/a")),
        ("CreateRun", pb.CreateRunRequest(run_id="Upper Case", settings=resources_pb2.PlanSettings())),
        ("RollBackRun", pb.RollBackRunRequest(name="runs/demo", adapter_digest="short")),
        ("StartRun", pb.StartRunRequest(request_id="two words", name="runs/demo")),
        ("ListRuns", pb.ListRunsRequest(page_token="made-up")),
    ],
)
def test_malformed_names_and_ids_are_told_apart_from_missing_ones(coordinator, call, request_):
    with pytest.raises(InvalidArgument), raised_as_errors():
        getattr(coordinator.admin(), call)(request_)


# --- the audit log ----------------------------------------------------------------------------------------------------


def test_every_change_is_in_the_audit_log_with_its_author_and_the_chain_holds(coordinator):
    name = create_run(coordinator).name
    admin = coordinator.admin("carol")
    admin.StartRun(pb.StartRunRequest(name=name))
    admin.PauseRun(pb.PauseRunRequest(name=name))
    admin.CancelRun(pb.CancelRunRequest(name=name, reason="done"))
    events: list[resources_pb2.AuditEvent] = []
    token = ""
    while True:
        page = admin.ListAuditEvents(pb.ListAuditEventsRequest(page_size=7, page_token=token))
        events += page.events
        token = page.next_page_token
        if not token:
            break
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    mine = [(event.actor, event.action) for event in events if event.subject == name]
    assert mine == [
        ("operators/alice", "run_created"),
        ("operators/carol", "run_started"),
        ("operators/carol", "run_paused"),
        ("operators/carol", "run_cancelled"),
    ]
    verdict = admin.VerifyAuditLog(pb.VerifyAuditLogRequest())
    assert verdict.intact
    assert verdict.events >= len(events)


def test_a_refused_change_leaves_the_line_that_it_was_refused_and_no_other(coordinator):
    officer = coordinator.admin("dora")
    with pytest.raises(NotFound), raised_as_errors():
        officer.StartRun(pb.StartRunRequest(request_id="fails", name="runs/nowhere"))
    events: list[resources_pb2.AuditEvent] = []
    while not events:
        mine = officer.ListAuditEvents(pb.ListAuditEventsRequest(actor="operators/dora")).events
        events = [event for event in mine if event.action != "call_answered"]  # that it lists them
    (event,) = events
    assert (event.action, event.subject) == ("call_refused", "accord.v1.AdminService/StartRun")
    assert json.loads(event.details_json)["reason"] == "NOT_FOUND"


def test_a_viewer_is_told_which_roles_may(coordinator):
    with pytest.raises(PermissionDenied, match="operator"), raised_as_errors():
        coordinator.admin("eve", Role.VIEWER).StartRun(pb.StartRunRequest(name="runs/demo"))
