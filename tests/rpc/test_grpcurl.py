"""Operators with grpcurl or buf curl: reflection, calls and refusals over mTLS, with the real tools."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.identifiers import Role
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY
from tests.rpc.coordinator import MODEL, SITES, RunningCoordinator, running_coordinator

TOOLS = Path(sys.executable).parent
SERVICE = "accord.v1.AdminService"


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    with running_coordinator(tmp_path_factory.mktemp("grpcurl")) as running:
        for site in SITES:
            running.enroll(site)
        yield running


class Grpcurl:
    """grpcurl as one operator calls it."""

    def __init__(self, running: RunningCoordinator, operator: str, role: Role) -> None:
        folder = running.operator_folder(operator, role)
        self._address = running.addresses.admin
        self._tls = [
            *("-cacert", str(folder / OPERATOR_CA)),
            *("-cert", str(folder / OPERATOR_CERTIFICATE)),
            *("-key", str(folder / OPERATOR_KEY)),
        ]

    def __call__(self, *words: str, request: object = None) -> subprocess.CompletedProcess[str]:
        data = [] if request is None else ["-d", json.dumps(request)]
        command = [str(TOOLS / "grpcurl"), "-connect-timeout", "5", *self._tls, *data, self._address, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def call(self, method: str, request: object = None) -> dict:
        done = self(f"{SERVICE}/{method}", request=request or {})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def grpcurl(coordinator):
    return Grpcurl(coordinator, "alice", Role.OPERATOR)


def test_reflection_lists_the_admin_service_and_describes_every_call(grpcurl):
    assert grpcurl("list").stdout.split() == [SERVICE, "grpc.reflection.v1alpha.ServerReflection"]
    described = grpcurl("describe", SERVICE).stdout
    assert described.count("rpc ") == 25
    settings = grpcurl("describe", "accord.v1.PlanSettings").stdout
    assert "uint32 rank = 2;" in settings


def test_a_federation_is_set_up_and_a_run_led_by_grpcurl_alone(grpcurl):
    token = grpcurl.call("CreateJoinToken", {"participant_id": "depot"})
    assert token["token"].startswith("accord-join-")
    draft = grpcurl.call("DraftCharter", {"participant_ids": list(SITES)})
    charter_json = draft.get("charterJson") or draft["charter_json"]
    published = grpcurl.call("PublishCharter", {"charter_json": charter_json})
    assert published["digest"] == draft["digest"]
    request = {"run_id": "support", "settings": {"base_model_json": MODEL.to_json(), "rounds": 2}}
    assert grpcurl.call("CreateRun", request)["run"]["state"] == "RUN_STATE_CREATED"
    states = [
        grpcurl.call(call, {"name": "runs/support"})["run"]["state"]
        for call in ("StartRun", "PauseRun", "ResumeRun", "CancelRun")
    ]
    assert states == ["RUN_STATE_RUNNING", "RUN_STATE_PAUSED", "RUN_STATE_RUNNING", "RUN_STATE_CANCELLED"]
    listed = grpcurl.call("ListRuns", {"states": ["RUN_STATE_CANCELLED"]})["runs"]
    assert [run["name"] for run in listed] == ["runs/support"]
    assert grpcurl.call("VerifyAuditLog")["intact"] is True


def test_an_adapter_is_exported_as_a_stream(grpcurl):
    run = grpcurl.call("CreateRun", {"run_id": "export", "settings": {"base_model_json": MODEL.to_json()}})["run"]
    digest = run.get("adapterDigest") or run["adapter_digest"]
    done = grpcurl(f"{SERVICE}/ExportAdapter", request={"digest": digest})
    assert done.returncode == 0, done.stderr
    assert '"chunk"' in done.stdout


def test_an_error_says_what_and_why(grpcurl):
    done = grpcurl(f"{SERVICE}/GetRun", request={"name": "runs/nowhere"})
    assert done.returncode != 0
    assert "Code: NotFound" in done.stderr
    assert "nowhere" in done.stderr
    assert "NOT_FOUND" in done.stderr


def test_a_viewer_sees_and_does_not_change(coordinator):
    viewer = Grpcurl(coordinator, "auditor", Role.VIEWER)
    assert viewer.call("GetFederation")["federation"] == "lab"
    done = viewer(f"{SERVICE}/StartRun", request={"name": "runs/support"})
    assert "Code: PermissionDenied" in done.stderr


def test_nobody_reads_the_api_without_a_certificate(coordinator):
    folder = coordinator.operator_folder("alice")
    words = ["-connect-timeout", "3", "-cacert", str(folder / OPERATOR_CA), coordinator.addresses.admin, "list"]
    done = subprocess.run([str(TOOLS / "grpcurl"), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert SERVICE not in done.stdout


def test_participants_find_no_reflection_on_their_listener(coordinator):
    folder = coordinator.operator_folder("alice")
    tls = ["-cacert", str(folder / OPERATOR_CA), "-cert", str(folder / OPERATOR_CERTIFICATE)]
    words = ["-connect-timeout", "5", *tls, "-key", str(folder / OPERATOR_KEY), coordinator.addresses.participants]
    done = subprocess.run(
        [str(TOOLS / "grpcurl"), *words, "list"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "does not support the reflection API" in done.stderr


def test_probes_ask_for_health_in_plain_text(coordinator):
    words = ["-plaintext", "-connect-timeout", "5", "-import-path", ".", "-proto", "health.proto"]
    proto = coordinator.config.data_folder.parent / "health.proto"
    proto.write_text(
        'syntax = "proto3"; package grpc.health.v1;\n'
        "message HealthCheckRequest { string service = 1; }\n"
        "message HealthCheckResponse { enum S { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; } S status = 1; }\n"
        "service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }\n"
    )
    for service in ("", SERVICE, "accord.v1.RoundService"):
        done = subprocess.run(
            [
                str(TOOLS / "grpcurl"),
                *words,
                "-d",
                json.dumps({"service": service}),
                coordinator.addresses.health_grpc,
                "grpc.health.v1.Health/Check",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=proto.parent,
        )
        assert json.loads(done.stdout) == {"status": "SERVING"}, done.stderr


def test_buf_curl_lists_and_calls(coordinator, grpcurl):
    folder = coordinator.operator_folder("alice")
    buf = [
        *(str(TOOLS / "buf"), "curl", "--protocol", "grpc"),
        *("--cacert", str(folder / OPERATOR_CA), "--cert", str(folder / OPERATOR_CERTIFICATE)),
        *("--key", str(folder / OPERATOR_KEY)),
    ]
    url = f"https://{coordinator.addresses.admin}"
    listed = subprocess.run(
        [*buf, "--list-methods", url], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )
    assert f"{SERVICE}/CreateRun" in listed.stdout.split(), listed.stderr
    called = subprocess.run(
        [*buf, "-d", "{}", f"{url}/{SERVICE}/GetFederation"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )
    assert json.loads(called.stdout)["federation"] == "lab", called.stderr
