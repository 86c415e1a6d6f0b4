"""What is in the audit log: every call of an operator, every change, and every decision of the coordinator."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from accord.v1 import admin_pb2 as pb
from common.rpc.status import raised_as_errors
from coordinator.store.opening import open_store
from participant.enrollment import enroll
from participant.identity import IdentityFolder
from tests.programs import ROOT
from tests.rpc.admin_calls import EVERY_CALL, filled
from tests.rpc.coordinator import SITES, running_coordinator
from tests.rpc.federation import Federation

ACTORS = ("operators/alice", "operators/bob")
METHODS = pb.DESCRIPTOR.services_by_name["AdminService"].methods_by_name

# Which line each admin call leaves in its transaction; "" for those that only read: theirs come a moment later, and
# count. An export changes nothing, but a model leaves.
LINE_OF = {
    "GetFederation": "",
    "CreateJoinToken": "join_token_created",
    "ListJoinTokens": "",
    "RevokeJoinToken": "join_token_revoked",
    "ListParticipants": "",
    "GetParticipant": "",
    "RevokeParticipant": "participant_revoked",
    "DraftCharter": "",
    "PublishCharter": "charter_published",
    "GetPublishedCharter": "",
    "CreateRun": "run_created",
    "GetRun": "",
    "ListRuns": "",
    "StartRun": "run_started",
    "PauseRun": "run_paused",
    "ResumeRun": "run_resumed",
    "CancelRun": "run_cancelled",
    "RollBackRun": "run_rolled_back",
    "GetRound": "",
    "ExplainRun": "",
    "ListRounds": "",
    "ListAdapters": "",
    "ExportAdapter": "adapter_exported",
    "ImportAdapter": "adapter_imported",
    "ListAuditEvents": "",
    "VerifyAuditLog": "",
    "CreateWebToken": "web_token_created",
    "ListWebTokens": "",
    "RevokeWebToken": "web_token_revoked",
}


def test_every_admin_call_is_in_the_table():
    assert LINE_OF.keys() == set(METHODS)
    assert {name for name, line in LINE_OF.items() if not line} == {
        name
        for name in METHODS
        if name.startswith(("Get", "List", "Explain", "Verify", "Draft"))  # a draft is written nowhere
    }


def test_every_admin_call_leaves_its_line_with_who_made_it(tmp_path: Path) -> None:
    with running_coordinator(tmp_path) as coordinator:
        for site in SITES:
            coordinator.enroll(site)
        stub, seen = coordinator.admin("alice"), 0
        answers: dict[str, dict[str, Any]] = {}
        for name, template in EVERY_CALL:
            while True:
                request = json_format.ParseDict(filled(template, answers), getattr(pb, f"{name}Request")())
                call = getattr(stub, name)
                with raised_as_errors():
                    answer = call(iter([request])) if METHODS[name].client_streaming else call(request)
                    parts = list(answer) if METHODS[name].server_streaming else [answer]
                answers[name] = {}
                for part in parts:
                    answers[name] |= json_format.MessageToDict(part, preserving_proto_field_name=True)
                if name != "ListRounds" or answers[name].get("rounds"):  # the driver opens the first one
                    break
            with coordinator.store.read() as reader:
                by_alice = [event for event in reader.audit_chain() if event.actor == "operators/alice"]
            events = [event for event in by_alice if event.action != "call_answered"]
            assert [event.action for event in events[seen:]] == ([LINE_OF[name]] if LINE_OF[name] else []), name
            seen = len(events)
        reading, told = {name for name, line in LINE_OF.items() if not line}, set[str]()
        while told != reading:
            with coordinator.store.read() as reader:
                lines = [event for event in reader.audit_chain() if event.action == "call_answered"]
            assert {event.actor for event in lines} <= {"operators/alice"}
            told = {event.subject.removeprefix("accord.v1.AdminService/") for event in lines}
            assert told <= reading


def test_reading_calls_are_counted_by_caller_and_told_when_the_coordinator_stops(tmp_path: Path) -> None:
    with running_coordinator(tmp_path) as coordinator:
        alice, bob = coordinator.admin("alice"), coordinator.admin("bob")
        for stub, times in ((alice, 7), (bob, 2)):
            for _ in range(times):
                stub.ListRuns(pb.ListRunsRequest())
    store = open_store(coordinator.config.database_url)
    with store.read() as reader:
        lines = [event for event in reader.audit_chain() if event.action == "call_answered"]
    store.close()
    assert {event.subject for event in lines} == {"accord.v1.AdminService/ListRuns"}
    counts = {actor: sum(json.loads(e.details)["count"] for e in lines if e.actor == actor) for actor in ACTORS}
    assert counts == {"operators/alice": 7, "operators/bob": 2}


def actions(federation: Federation) -> dict[str, set[str]]:
    """Actors by action, of all that is in the log."""
    found: dict[str, set[str]] = {}
    for event in federation.admin.audit_events():
        found.setdefault(event["action"], set()).add(event["actor"])
    return found


def test_enrolments_rounds_decisions_publications_and_rollbacks_are_in_it(federation: Federation) -> None:
    token = federation.admin.create_join_token("nobody", ttl_seconds=1)["token"]
    federation.clock.advance(seconds=2)
    with pytest.raises(Exception, match="expired"):
        enroll(IdentityFolder(federation.folder / "nobody"), token, federation.clock)
    federation.add_sites(4)
    federation.create_run(rounds=3)
    federation.play(1)
    federation.sites["site-3"].line.cut(before="upload")  # in the cohort, and not among the survivors
    federation.play(2)
    federation.turn(["site-0", "site-1", "site-2"])
    federation.advance(11)
    federation.sites["site-2"].client.report_failure("run", 3, reason="DATA_INVALID", message="no record is left")
    federation.admin.pause_run("runs/run")
    federation.advance(201)  # too few were ready
    federation.admin.roll_back_run("runs/run", adapter_round=1)
    federation.sites["site-1"].client.decline_run("run", reason="POLICY_REFUSAL", message="not tonight")

    found = actions(federation)
    coordinator, members = {"coordinator"}, {f"participants/site-{index}" for index in range(4)}
    assert found["enrollment_refused"] == {"anonymous"}
    assert found["participant_enrolled"] == found["run_joined"] == found["update_received"] == members
    decisions = ("round_opened", "key_epoch_ready", "training_opened", "cohort_chosen", "survivors_bound")
    for action in (*decisions, "shares_revealed", "adapter_published", "adapter_accepted", "participant_dropped"):
        assert found[action] == coordinator, action
    assert found["round_failed"] == coordinator
    assert found["participant_failed"] == {"participants/site-2"}
    assert found["run_declined"] == {"participants/site-1"}
    assert found["run_rolled_back"] == {"operators/alice"}
    (failed,) = federation.admin.audit_events(action="round_failed", subject="runs/run/rounds/3")
    assert "training has 0 of at least 3" in json.loads(failed["details_json"])["message"]
    bound = [json.loads(event["details_json"]) for event in federation.admin.audit_events(action="survivors_bound")]
    assert [len(line["survivors"]) for line in bound] == [4, 3]
    assert federation.admin.verify_audit_log()["intact"] is True


def test_a_refused_call_is_in_it_with_who_tried_what(federation: Federation) -> None:
    federation.add_sites(3)
    federation.admin.revoke_participant("participants/site-2", reason="left")
    with pytest.raises(Exception, match="was revoked"):
        federation.sites["site-2"].client.assignments("", wait_seconds=0)
    rows: list[object] = []
    while not rows:
        rows = list(federation.admin.audit_events(action="call_refused", actor="participants/site-2"))
    (event,) = rows
    assert event["subject"] == "accord.v1.RoundService/GetAssignment"  # type: ignore[index]
    assert json.loads(event["details_json"])["reason"] == "CERTIFICATE_REVOKED"  # type: ignore[index]


def test_an_expected_head_shows_over_the_api_that_another_log_is_there(federation: Federation) -> None:
    for name in ("one", "two", "three"):
        federation.admin.create_join_token(name, ttl_seconds=60)
    verdict = federation.admin.verify_audit_log()
    noted = {"expected_sequence": verdict["sequence"], "expected_chain_digest": verdict["chain_digest"]}
    federation.admin.create_join_token("four", ttl_seconds=60)
    assert federation.admin.verify_audit_log(**noted)["intact"] is True
    later = federation.admin.verify_audit_log(**{**noted, "expected_sequence": verdict["sequence"] + 2})
    assert (later["intact"], later["first_broken_sequence"]) == (False, verdict["sequence"] + 2)
    other = federation.admin.verify_audit_log(**{**noted, "expected_chain_digest": "0" * 64})
    assert (other["intact"], other["first_broken_sequence"]) == (False, verdict["sequence"])


# --- the operator's guide names every line ----------------------------------------------------------------------------

WRITERS = {"append", "audit", "_audit", "append_locally", "_told", "_change_run"}
NO_ACTIONS = {"ca"}  # a subject


def written(path: Path) -> Iterator[str]:
    """Names of audit lines that a module writes: constants handed to the functions that append."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in WRITERS:
            continue
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "action")]
        for part in given:
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and re.fullmatch(r"[a-z_]+", part.value):
                yield part.value


def test_the_guide_explains_every_line_that_the_code_writes():
    code = {action for path in (ROOT / "coordinator").rglob("*.py") for action in written(path)} - NO_ACTIONS
    code |= {"second_receipt", "second_commit", "false_reveal"}  # kinds of proof, named by the message
    guide = (ROOT / "docs" / "federation-operator.md").read_text()
    table = guide[guide.index("## The audit log") :]
    explained = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", table[: table.index("\n## ", 5)]))
    assert code - explained == set()
    assert explained - code == set()
