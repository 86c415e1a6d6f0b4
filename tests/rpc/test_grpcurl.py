"""Operators with grpcurl or buf curl: reflection, every call and refusals over mTLS, with the real tools."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from accord.v1 import admin_pb2
from common.identifiers import Role
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY
from tests.programs import ROOT, tool
from tests.rpc.admin_calls import EVERY_CALL, filled
from tests.rpc.coordinator import MODEL, SITES, RunningCoordinator, running_coordinator

TOOLS = Path(sys.executable).parent
SERVICE = "accord.v1.AdminService"
METHODS = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods_by_name


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    with running_coordinator(tmp_path_factory.mktemp("grpcurl")) as running:
        for site in (*SITES, "museum"):
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
    assert described.count("rpc ") == len(METHODS)
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


# --- every call, with both tools --------------------------------------------------------------------------------------


class BufCurl:
    """buf curl as one operator calls it."""

    def __init__(self, running: RunningCoordinator, operator: str, role: Role) -> None:
        self._folder = running.operator_folder(operator, role)
        self._url = f"https://{running.addresses.admin}"

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        tls = ("--cacert", OPERATOR_CA, "--cert", OPERATOR_CERTIFICATE, "--key", OPERATOR_KEY)
        command = [str(TOOLS / "buf"), "curl", "--protocol", "grpc", *tls, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=self._folder)

    def methods(self) -> list[str]:
        return self("--list-methods", self._url).stdout.split()

    def call(self, method: str, request: object = None) -> dict:
        done = self("-d", json.dumps(request or {}), f"{self._url}/{SERVICE}/{method}")
        assert done.returncode == 0, done.stderr
        return said(done.stdout)


def said(output: str) -> dict:
    """An answer; of a stream all messages in one."""
    found: dict = {}
    while output := output.strip():
        message, end = json.JSONDecoder().raw_decode(output)
        found |= message
        output = output[end:]
    return found


def snake(value: object) -> object:
    """An answer with the API's own field names: the one tool prints these, the other JSON's."""
    if isinstance(value, dict):
        return {re.sub(r"([A-Z])", r"_\1", key).lower(): snake(part) for key, part in value.items()}
    return [snake(part) for part in value] if isinstance(value, list) else value


def test_every_call_of_the_service_has_a_request_here():
    assert sorted(call for call, _ in EVERY_CALL) == sorted(METHODS)


def test_every_call_works_with_grpcurl_and_with_buf_curl(coordinator, grpcurl):
    buf = BufCurl(coordinator, "alice", Role.OPERATOR)
    assert {name for name in buf.methods() if name.startswith(SERVICE)} == {f"{SERVICE}/{name}" for name in METHODS}
    answers: dict[str, object] = {}
    for call, template in EVERY_CALL:
        request = filled(template, answers)
        if call == "ListRounds":  # the driver opens the first one
            while not (grpcurl.call(call, request).get("rounds")):
                pass
        done = grpcurl(f"{SERVICE}/{call}", request=request)
        assert done.returncode == 0, (call, done.stderr)
        first = answers[call] = snake(said(done.stdout))
        second = snake(buf.call(call, request))
        assert isinstance(first, dict), call
        assert isinstance(second, dict), call
        if "request_id" in template:  # done once, and answered twice, but for what is a secret
            first.pop("token", None)
            assert second == first, call
        else:
            assert second.keys() == first.keys(), call


def test_a_list_that_is_asked_for_has_pages_and_every_change_can_be_repeated():
    for name, method in METHODS.items():
        fields = set(method.input_type.fields_by_name)
        if name.startswith("List"):
            assert {"page_size", "page_token"} <= fields, name
            assert "next_page_token" in method.output_type.fields_by_name, name
        reads = name.startswith(("Get", "List", "Export", "Verify", "Explain", "Draft"))
        # An import names nothing but its bytes: the same bytes have the same digest.
        assert ("request_id" in fields) == (not reads and name != "ImportAdapter"), name


# --- the scripts of deploy/grpcurl ------------------------------------------------------------------------------------

SCRIPTS = sorted(path for path in (ROOT / "deploy" / "grpcurl").glob("*.sh") if path.name != "common.sh")


class Script:
    """deploy/grpcurl's scripts as one operator runs them."""

    def __init__(self, running: RunningCoordinator, operator: str, role: Role) -> None:
        self._environment = {
            "PATH": f"{TOOLS}:/usr/bin:/bin",
            "ACCORD_ADMIN": running.addresses.admin,
            "ACCORD_OPERATOR": str(running.operator_folder(operator, role)),
        }

    def __call__(self, name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "deploy" / "grpcurl" / name), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._environment | environment,
        )

    def answer(self, name: str, *words: str, **environment: str) -> dict:
        done = self(name, *words, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def script(coordinator):
    return Script(coordinator, "alice", Role.OPERATOR)


def test_scripts_pass_shellcheck():
    files = [str(path.name) for path in (ROOT / "deploy" / "grpcurl").glob("*.sh")]
    command = [str(tool("shell", "shellcheck")), "-x", *files]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT / "deploy" / "grpcurl"
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_has_a_manual_and_refuses_a_wrong_number_of_words(script, path):
    manual = script(path.name, "-h")
    assert manual.returncode == 0
    assert manual.stdout.startswith(path.name)
    assert f"  {path.name}" in manual.stdout or f"&& {path.name}" in manual.stdout  # an example
    wrong = script(path.name, "a", "b", "c", "d")
    assert wrong.returncode == 2
    assert wrong.stderr == manual.stdout


def test_the_scripts_lead_a_run(coordinator, grpcurl, script):
    charter = grpcurl.call("DraftCharter", {"participant_ids": ["bank", "newsroom", "museum"]})
    grpcurl.call("PublishCharter", {"charter_json": charter.get("charterJson") or charter["charter_json"]})
    grpcurl.call("CreateRun", {"run_id": "led", "settings": {"base_model_json": MODEL.to_json(), "rounds": 2}})

    token = script.answer("create-token.sh", "depot", "600")
    assert token["token"].startswith("accord-join-")
    again = script.answer("create-token.sh", "depot", ACCORD_REQUEST_ID="one")
    assert script.answer("create-token.sh", "depot", ACCORD_REQUEST_ID="one").keys() < again.keys()

    waiting = script.answer("who-holds-it-up.sh", "led")["awaited"]
    assert [row["participant"] for row in waiting] == [
        f"participants/{name}" for name in ("bank", "museum", "newsroom")
    ]
    assert {(row["step"], row["reason"]) for row in waiting} == {("join", "NEVER_SEEN")}
    assert all("start the daemon" in row["advice"] for row in waiting)

    assert script.answer("start-run.sh", "led")["run"]["state"] == "RUN_STATE_RUNNING"
    assert script.answer("pause-run.sh", "runs/led")["run"]["state"] == "RUN_STATE_PAUSED"
    refused = script("roll-back.sh", "led", "7")
    assert refused.returncode != 0
    assert "round 7 of runs/led has made no adapter; there are those of rounds 0" in refused.stderr
    assert script.answer("resume-run.sh", "led")["run"]["state"] == "RUN_STATE_RUNNING"
    grpcurl.call("CreateRun", {"run_id": "back", "settings": {"base_model_json": MODEL.to_json()}})
    assert script.answer("roll-back.sh", "back", "0")["run"]["state"] == "RUN_STATE_CREATED"

    out = script.answer("revoke-participant.sh", "museum", 'its "key" was lost')["participant"]
    assert out.get("revokeReason", out.get("revoke_reason")) == 'its "key" was lost'

    verdict = script.answer("verify-audit-log.sh")
    digest = verdict.get("chainDigest") or verdict["chain_digest"]
    assert script.answer("verify-audit-log.sh", str(verdict["sequence"]), digest)["intact"] is True
    broken = script("verify-audit-log.sh", str(verdict["sequence"]), "0" * 64)
    assert broken.returncode == 1
    assert "BROKEN" in broken.stderr


def test_a_script_says_what_is_missing(coordinator, script, tmp_path):
    assert "name the folder of your certificate" in script("pause-run.sh", "led", ACCORD_OPERATOR=str(tmp_path)).stderr
    assert "install grpcurl" in script("pause-run.sh", "led", GRPCURL="no-such-program").stderr
    assert "is not a number" in script("roll-back.sh", "led", "two").stderr
    assert "one line" in script("revoke-participant.sh", "bank", "two\nlines").stderr
    assert "NotFound" in script("start-run.sh", "nowhere").stderr
    away = script("pause-run.sh", "led", ACCORD_ADMIN="127.0.0.1:1")
    assert away.returncode != 0
    assert "connect" in away.stderr
    viewer = Script(coordinator, "auditor", Role.VIEWER)("pause-run.sh", "led")
    assert "PermissionDenied" in viewer.stderr
    assert "operator" in viewer.stderr
