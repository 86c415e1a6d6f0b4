"""A request for every call of AdminService, for tests that make each of them on a running coordinator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.rpc.coordinator import MODEL, SITES

# A request for each call, in an order in which each can be answered; {…} is taken from earlier answers. A call that
# changes something is made by both tools with one request_id, so that the second gets the first one's answer.
EVERY_CALL: tuple[tuple[str, dict], ...] = (
    ("GetFederation", {}),
    ("CreateJoinToken", {"request_id": "token", "participant_id": "depot", "ttl_seconds": 600}),
    ("ListJoinTokens", {"participant_id": "depot", "open_only": True}),
    ("RevokeJoinToken", {"request_id": "untoken", "name": "{CreateJoinToken.join_token.name}"}),
    ("ListParticipants", {"page_size": 2, "states": ["PARTICIPANT_STATE_ACTIVE"]}),
    ("GetParticipant", {"name": "participants/bank"}),
    ("DraftCharter", {"participant_ids": list(SITES)}),
    ("PublishCharter", {"request_id": "charter", "charter_json": "{DraftCharter.charter_json}"}),
    ("GetPublishedCharter", {}),
    ("CreateRun", {"request_id": "run", "run_id": "every", "settings": {"base_model_json": MODEL.to_json()}}),
    ("GetRun", {"name": "runs/every"}),
    ("ListRuns", {"states": ["RUN_STATE_CREATED"]}),
    ("RollBackRun", {"request_id": "back", "name": "runs/every", "adapter_round": 0}),
    ("ListAdapters", {"run": "runs/every", "states": ["ADAPTER_STATE_ACCEPTED"]}),
    ("ExportAdapter", {"digest": "{CreateRun.run.adapter_digest}"}),
    ("ImportAdapter", {"chunk": "{ExportAdapter.chunk}"}),
    ("StartRun", {"request_id": "start", "name": "runs/every"}),
    ("PauseRun", {"request_id": "pause", "name": "runs/every"}),
    ("ResumeRun", {"request_id": "resume", "name": "runs/every"}),
    ("ExplainRun", {"name": "runs/every"}),
    ("ListRounds", {"run": "runs/every", "view": "ROUND_VIEW_BASIC"}),
    ("GetRound", {"name": "{ListRounds.rounds.0.name}"}),
    ("CancelRun", {"request_id": "cancel", "name": "runs/every", "reason": "tried"}),
    ("CreateWebToken", {"request_id": "page", "label": "wallboard"}),
    ("ListWebTokens", {}),
    ("RevokeWebToken", {"request_id": "unpage", "name": "{CreateWebToken.web_token.name}"}),
    ("RevokeParticipant", {"request_id": "out", "name": "participants/clinic", "reason": "has left"}),
    ("ListAuditEvents", {"actor": "operators/alice", "newest_first": True, "page_size": 3}),
    ("VerifyAuditLog", {}),
)


def filled(part: Any, answers: Mapping[str, Any]) -> Any:
    """A request with what earlier answers say in the places of {Call.field.0.field}."""
    if isinstance(part, dict):
        return {key: filled(value, answers) for key, value in part.items()}
    if not isinstance(part, str) or re.fullmatch(r"\{[A-Z]\w+(\.\w+)+\}", part) is None:
        return part
    found: Any = answers
    for step in part[1:-1].split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found
