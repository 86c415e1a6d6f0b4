"""What both services say while a run goes on, over real servers: no log line, audit entry or answer holds a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from common.log import LogForm, configure
from tests.rpc.federation import federation_in
from tests.secrets_spy import spying


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure(form=LogForm.JSON, level=logging.DEBUG, stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_neither_service_logs_or_audits_a_secret(lines: io.StringIO, tmp_path: Path) -> None:
    """A round with a dropout, so that both kinds of share are opened."""
    with spying() as spy, federation_in(tmp_path) as federation:
        federation.add_sites(4)
        federation.create_run(rounds=1)
        lost = federation.sites["site-2"]
        found = federation.play_with_a_dropout(lost)
        assert found["state"] == "succeeded"
        lost.line.mend()
        told = json.dumps([list(federation.admin.audit_events()), federation.round(1), federation.run()], default=str)
    text = lines.getvalue()
    events = {json.loads(line)["event"] for line in text.splitlines()}
    assert events >= {"key_epoch_begun", "update_uploaded", "coordinator_started"}, "both services log here"
    assert "shares_revealed" in told
    assert len(spy.secrets) > 100
    assert spy.found_in(text) == []
    assert spy.found_in(told) == []
