"""Every preflight check made to fail for real: what it finds, and that it says what to do."""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import ssl
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.basemodel import describe
from common.certificates import spki_sha256
from common.clock import SystemClock
from common.identifiers import FederationId
from participant.config import TrainingConfig
from participant.identity import IdentityFolder
from participant.network.route import PROXY_VARIABLES
from participant.preflight import CHECK_NAMES, CHECKS, Finding, Site, Verdict, machine, preflight
from participant.preflight.machine import Gpu, Processors
from participant.preflight.report import Result
from participant.training.job import Device, Sharding
from tests.fakes import FakeClock
from tests.rpc.background import SITES, coordinator_in_background, foreign_identity
from tests.rpc.parts import HOST, Pki
from tests.site_files import POLICY, write_records

CPU = Processors(torch="2", gpus=(), gpu_has_bfloat16=False, cpu_has_bfloat16=False)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def findings(config: Path, *names: str, clock=None) -> dict[str, Finding]:
    site = Site(config, clock=clock or SystemClock())
    chosen = (lambda name: name in names) if names else (lambda name: True)
    return {finding.check: finding for finding in preflight(site, chosen=chosen)}


def failure(config: Path, name: str, *, clock=None) -> str:
    """What a check found that has failed; it also says what to do."""
    finding = findings(config, name, clock=clock)[name]
    assert finding.verdict is Verdict.FAILED, finding
    assert finding.action
    return finding.found


def result_of(config: Path, name: str, *, clock=None) -> tuple[Verdict, str]:
    finding = findings(config, name, clock=clock)[name]
    return finding.verdict, finding.found


def edit(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    return config


def dialling(config: Path, address: str) -> Path:
    config.write_text(config.read_text() + f'\ncoordinator = {{ address = "{address}" }}\n')
    return config


# --- all of them ---------------------------------------------------------------------------------------------------


def test_at_a_sound_site_no_check_fails_and_none_is_skipped(enrolled, coordinator):
    coordinator.told.time = SystemClock().now()
    found = findings(enrolled)
    assert list(found) == list(CHECK_NAMES)
    assert {
        name: finding for name, finding in found.items() if finding.verdict in (Verdict.FAILED, Verdict.SKIPPED)
    } == {}
    assert {name for name, finding in found.items() if finding.verdict is Verdict.WARNING} == {"charter"}


def test_without_a_configuration_all_that_needs_it_is_skipped_and_says_why(tmp_path):
    found = findings(tmp_path / "nowhere.toml")
    assert "cannot read" in found["config"].found
    skipped = {name: finding.found for name, finding in found.items() if finding.verdict is Verdict.SKIPPED}
    assert set(skipped) == set(CHECK_NAMES) - {"software", "config"}
    assert skipped["policy"] == "needs config"
    assert skipped["tls"] == "needs certificate, port"
    assert found["software"].verdict is Verdict.OK


def test_a_check_needs_only_checks_that_come_before_it():
    for number, check in enumerate(CHECKS):
        assert set(check.needs) <= set(CHECK_NAMES[:number])


def test_a_check_that_is_not_chosen_keeps_no_other_from_looking(enrolled):
    assert findings(enrolled, "call")["call"].verdict is Verdict.OK


# --- files of the site ---------------------------------------------------------------------------------------------


def test_a_mistake_in_the_configuration_fails_with_its_path(config):
    assert "data.train_fil: there is no such setting" in failure(edit(config, "train_file", "train_fil"), "config")


def test_a_mistake_in_the_policy_fails_with_its_path(config):
    (config.parent / "policy.toml").write_text(POLICY.replace("most_rank = 8", "most_rank = 0"))
    assert "adapter.most_rank: " in failure(config, "policy")


def test_outside_its_hours_a_site_is_warned_with_the_time_of_the_next_opening(config):
    (config.parent / "policy.toml").write_text(POLICY + 'hours = { allow = ["tue 10:00-11:00"] }')
    noon = FakeClock(datetime(2026, 1, 6, 12, 0, tzinfo=UTC))
    assert result_of(config, "hours", clock=noon) == (
        Verdict.WARNING,
        "outside the site's hours; they open on Tuesday 2026-01-13 at 10:00 (UTC)",
    )
    assert result_of(config, "hours", clock=FakeClock(datetime(2026, 1, 6, 10, 0, tzinfo=UTC)))[0] is Verdict.OK


def test_too_little_space_fails(config):
    assert "the configuration asks for 99999999999" in failure(
        edit(config, "least_free_mebibytes = 1", "least_free_mebibytes = 99999999999"), "disk"
    )


@pytest.mark.parametrize("folder", ["/proc/self", "/proc/self/state"])
def test_a_state_directory_that_cannot_be_written_fails(config, folder):
    assert folder in failure(edit(config, '"state"', f'"{folder}"'), "disk")


def test_a_state_directory_that_is_a_file_fails(config):
    (config.parent / "state").write_text("")
    assert "is no directory" in failure(config, "disk")


# --- identity ------------------------------------------------------------------------------------------------------


def test_a_site_that_is_not_enrolled_fails(config):
    assert "not enrolled" in failure(config, "identity")


def test_a_key_that_others_may_read_fails(enrolled):
    folder = IdentityFolder(enrolled.parent / "state" / "identity")
    folder.key_file.chmod(0o640)
    finding = findings(enrolled, "identity")["identity"]
    assert finding.verdict is Verdict.FAILED
    assert "mode 0640" in finding.found
    assert finding.action == f"chmod 600 {folder.key_file}"


def test_a_folder_in_which_others_could_replace_the_key_fails(enrolled):
    (enrolled.parent / "state" / "identity").chmod(0o775)
    assert "others may write" in failure(enrolled, "identity")


def test_a_certificate_of_another_key_fails(enrolled, coordinator, tmp_path):
    coordinator.enroll(tmp_path / "other", "clinic")
    shutil.copy(tmp_path / "other" / "certificate.pem", enrolled.parent / "state" / "identity" / "certificate.pem")
    assert "is not for the key" in failure(enrolled, "identity")


def test_an_expired_certificate_fails_and_one_that_is_not_renewed_is_warned_of(enrolled):
    expires = IdentityFolder(enrolled.parent / "state" / "identity").load().expires_at
    assert "has expired on" in failure(enrolled, "certificate", clock=FakeClock(expires + timedelta(days=3)))
    verdict, found = result_of(enrolled, "certificate", clock=FakeClock(expires - timedelta(days=3)))
    assert verdict is Verdict.WARNING
    assert "should have been renewed since" in found


def test_a_clock_before_the_certificates_beginning_fails(enrolled):
    past = FakeClock(SystemClock().now() - timedelta(days=100))
    assert "this machine's clock says" in failure(enrolled, "certificate", clock=past)


# --- charter -------------------------------------------------------------------------------------------------------


def pin(config: Path, charter, *, digest: str | None = None) -> Path:
    (config.parent / "charter.json").write_bytes(charter.to_bytes())
    pinned = f'mode = "pinned", file = "charter.json", digest = "{digest or charter.digest}"'
    return edit(config, 'mode = "coordinator"', pinned)


def test_the_pinned_charter_is_found_to_be_the_coordinators(enrolled, coordinator):
    config = pin(enrolled, coordinator.charter())
    assert findings(config, "charter")["charter"].verdict is Verdict.OK
    assert findings(config, "published_charter")["published_charter"].verdict is Verdict.OK


def test_a_charter_other_than_the_pinned_one_fails(enrolled, coordinator):
    assert f"pins {'0' * 64}" in failure(pin(enrolled, coordinator.charter(), digest="0" * 64), "charter")


def test_a_pinned_charter_that_is_not_there_fails(enrolled, coordinator):
    config = pin(enrolled, coordinator.charter())
    (config.parent / "charter.json").unlink()
    assert "cannot read the pinned charter" in failure(config, "charter")


def test_a_charter_that_does_not_name_the_site_fails(config, coordinator):
    coordinator.enroll(config.parent / "state" / "identity", "stranger")
    assert f"does not name stranger; its members are {', '.join(SITES)}" in failure(
        pin(config, coordinator.charter()), "charter"
    )


def test_a_charter_of_another_key_fails_and_one_of_the_sites_own_does_not(enrolled, coordinator):
    identity = IdentityFolder(enrolled.parent / "state" / "identity").load()
    own = coordinator.charter(bank=spki_sha256(identity.certificate.public_key()))
    pin(enrolled, own)
    assert findings(enrolled, "charter")["charter"].verdict is Verdict.OK
    other = coordinator.charter(bank="11" * 32)
    (enrolled.parent / "charter.json").write_bytes(other.to_bytes())
    assert "the charter pins key 1111" in failure(edit(enrolled, own.digest, other.digest), "charter")


def test_a_coordinator_under_another_charter_fails(enrolled, coordinator):
    pin(enrolled, replace(coordinator.charter(), least_cohort=3, coordinator_public_key="ee" * 32))
    assert "runs will be refused" in failure(enrolled, "published_charter")


def test_a_coordinator_without_a_charter_is_warned_of(config, tmp_path):
    with coordinator_in_background(tmp_path / "new") as new:
        new.enroll(config.parent / "state" / "identity")
        found = findings(config, "call", "published_charter")
    assert found["call"].verdict is Verdict.OK
    assert found["published_charter"].verdict is Verdict.WARNING


# --- name and port -------------------------------------------------------------------------------------------------


def test_a_host_without_an_address_fails(enrolled):
    assert "coordinator.invalid has no address" in failure(dialling(enrolled, "coordinator.invalid:7443"), "name")


def test_a_port_where_nothing_listens_fails(enrolled):
    with closing(socket.create_server((HOST, 0))) as taken:
        port = taken.getsockname()[1]
    assert f"{HOST}:{port} refuses connections" in failure(dialling(enrolled, f"{HOST}:{port}"), "port")


# --- TLS -----------------------------------------------------------------------------------------------------------


def test_the_right_coordinator_is_recognised_with_its_issuer(enrolled):
    verdict, found = result_of(enrolled, "tls")
    assert verdict is Verdict.OK
    assert "north coordinator CA" in found


def test_a_box_that_takes_tls_apart_is_named_by_its_issuer(enrolled, tmp_path):
    inspector = Pki.create(tmp_path / "inspector", FederationId("inspector"))
    with coordinator_in_background(tmp_path / "behind", server=inspector) as behind:
        finding = findings(dialling(enrolled, f"{HOST}:{behind.port}"), "tls")["tls"]
    assert finding.verdict is Verdict.FAILED
    assert "issued by CN=inspector coordinator CA" in finding.found
    assert "CN=north coordinator CA" in finding.found
    assert "pass this connection through" in finding.action


def test_a_certificate_for_another_host_fails_with_the_names_that_it_is_for(enrolled, coordinator, tmp_path):
    elsewhere = Pki(coordinator.pki.folder, coordinator.pki.authority)
    issued = elsewhere.authority.issue_server(["accord.example.org"], now=elsewhere.now)
    with tls_server(tmp_path, issued.chain_pem, issued.key_pem, protocols=["h2"]) as port:
        found = failure(dialling(enrolled, f"{HOST}:{port}"), "tls")
    assert f"not for {HOST}; it is for accord.example.org" in found


def test_an_expired_certificate_of_the_coordinator_fails_with_its_dates(enrolled, coordinator, tmp_path):
    pki = coordinator.pki
    issued = pki.authority.issue_server([HOST], now=pki.now - timedelta(days=90), life=timedelta(days=30))
    with tls_server(tmp_path, issued.chain_pem, issued.key_pem, protocols=["h2"]) as port:
        found = failure(dialling(enrolled, f"{HOST}:{port}"), "tls")
    assert "certificate has expired (valid from" in found


def test_a_service_that_is_not_grpc_fails(enrolled, coordinator, tmp_path):
    pki = coordinator.pki
    issued = pki.authority.issue_server([HOST], now=pki.now)
    with tls_server(tmp_path, issued.chain_pem, issued.key_pem, protocols=["http/1.1"]) as port:
        assert "HTTP/2" in failure(dialling(enrolled, f"{HOST}:{port}"), "tls")


def test_a_service_without_tls_fails(enrolled):
    with plain_server(b"SSH-2.0-OpenSSH_9.6\r\n") as port:
        assert "TLS" in failure(dialling(enrolled, f"{HOST}:{port}"), "tls")


def test_a_certificate_that_the_coordinator_does_not_accept_fails(config, coordinator, tmp_path):
    foreign_identity(
        Pki.create(tmp_path / "foreign"),
        config.parent / "state" / "identity",
        participant="bank",
        trust_bundle=coordinator.pki.folder.trust_bundle(),
        address=f"{HOST}:{coordinator.port}",
    )
    assert "does not accept this site's certificate" in failure(config, "tls")


# --- the call ------------------------------------------------------------------------------------------------------


def test_a_revoked_site_fails_with_the_reason(config, coordinator):
    coordinator.enroll(config.parent / "state" / "identity", "leaver")
    coordinator.revoke("leaver")
    found = findings(config, "tls", "call")
    assert found["tls"].verdict is Verdict.OK
    assert found["call"].verdict is Verdict.FAILED
    assert "left the federation" in found["call"].found


def test_a_coordinator_that_is_down_fails(config, tmp_path):
    with coordinator_in_background(tmp_path / "short") as short:
        short.enroll(config.parent / "state" / "identity")
    assert "the call failed" in failure(config, "call")


@pytest.mark.parametrize(
    ("minutes", "verdict", "word"),
    [
        (10, Verdict.FAILED, "behind"),
        (-10, Verdict.FAILED, "ahead"),
        (2, Verdict.WARNING, "behind"),
        (0, Verdict.OK, "within"),
    ],
)
def test_a_clock_that_differs_from_the_coordinators_is_told_with_its_direction(
    enrolled, coordinator, monkeypatch, minutes, verdict, word
):
    monkeypatch.setattr(coordinator.told, "time", SystemClock().now() + timedelta(minutes=minutes))
    assert (found := findings(enrolled, "clock")["clock"]).verdict is verdict
    assert word in found.found


# --- through a proxy -----------------------------------------------------------------------------------------------


def test_the_checks_go_through_the_proxy_that_grpc_would_use(enrolled, monkeypatch):
    with proxy(allows=True) as (port, asked):
        monkeypatch.setenv("https_proxy", f"http://{HOST}:{port}")
        monkeypatch.setenv("no_proxy", "")
        found = findings(enrolled, "port", "tls", "call")
    assert {finding.verdict for finding in found.values()} >= {Verdict.OK}
    assert Verdict.FAILED not in {finding.verdict for finding in found.values()}
    assert f"through the proxy {HOST}:{port}" in found["port"].found
    assert len(asked) >= 3


def test_a_proxy_that_refuses_is_named(enrolled, monkeypatch):
    with proxy(allows=False) as (port, _):
        monkeypatch.setenv("https_proxy", f"http://{HOST}:{port}")
        assert "does not connect to" in failure(enrolled, "port")


# --- machine -------------------------------------------------------------------------------------------------------


def test_a_missing_training_stack_fails_by_name():
    result = machine.software(stack=("json", "no_such_package"))
    assert result.verdict is Verdict.FAILED
    assert "without no_such_package" in result.found


def test_a_torch_that_does_not_start_fails():
    result = machine.processors(python="/bin/false")
    assert isinstance(result, Result)
    assert "torch does not start" in result.found


def test_a_gpu_that_is_asked_for_and_not_there_fails():
    assert machine.device(CPU, TrainingConfig(device=Device.CUDA)).verdict is Verdict.FAILED
    assert machine.device(CPU, TrainingConfig()).verdict is Verdict.OK


def test_more_threads_than_processors_are_warned_of():
    assert machine.device(CPU, TrainingConfig(threads=100_000)).verdict is Verdict.WARNING


def test_processes_have_a_gpu_each_and_threads_each():
    two = replace(CPU, gpus=(Gpu("H100", 80 * 2**30),) * 2, gpu_has_bfloat16=True)
    assert machine.device(two, TrainingConfig(processes=2)).verdict is Verdict.OK
    told = machine.device(two, TrainingConfig(processes=3))
    assert (told.verdict, "there are 2" in told.found) == (Verdict.FAILED, True)
    told = machine.device(CPU, TrainingConfig(threads=2_000, processes=50))
    assert (told.verdict, "in each of 50 processes" in told.found) == (Verdict.WARNING, True)


def test_the_memory_that_is_needed_is_that_of_all_processes_and_of_a_share_on_each_gpu(config):
    model = replace(describe(config.parent / "model"), parameters=10**9)
    two = replace(CPU, gpus=(Gpu("small", 3 * 2**30),) * 2, gpu_has_bfloat16=True)
    assert machine.memory(model, two, TrainingConfig(processes=2)).verdict is Verdict.WARNING
    assert machine.memory(model, two, TrainingConfig(processes=2, sharding=Sharding.FSDP)).verdict is Verdict.OK
    little = replace(model, parameters=10**6)
    assert machine.memory(little, CPU, TrainingConfig(memory_mebibytes=700)).verdict is Verdict.WARNING
    assert machine.memory(little, CPU, TrainingConfig(memory_mebibytes=700, processes=2)).verdict is Verdict.FAILED


def test_a_base_model_that_does_not_fit_the_memory_fails(config):
    model = replace(describe(config.parent / "model"), parameters=10**9)
    assert machine.memory(model, CPU, TrainingConfig(memory_mebibytes=2000)).verdict is Verdict.FAILED
    small = replace(model, parameters=10**6)
    assert machine.memory(small, CPU, TrainingConfig(memory_mebibytes=620)).verdict is Verdict.WARNING
    gpu = replace(CPU, gpus=(Gpu("H100", 80 * 2**30),), gpu_has_bfloat16=True)
    assert machine.memory(model, gpu, TrainingConfig(memory_mebibytes=2000)).verdict is Verdict.OK


def test_a_containers_limit_counts_as_the_machines_memory(tmp_path):
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "unlimited").write_text("max\n")
    limits = (tmp_path / "nowhere", tmp_path / "unlimited", tmp_path / "memory.max")
    assert machine.available_memory_bytes(TrainingConfig(), cgroup_limits=limits) == 1048576


# --- base models and records ---------------------------------------------------------------------------------------


def test_a_base_model_that_is_not_there_fails(config):
    shutil.rmtree(config.parent / "model")
    assert "model" in failure(config, "base_models")


def test_a_base_model_of_another_digest_fails_with_both(config):
    digest = describe(config.parent / "model").digest
    edit(config, '{ source = "model" }', '{ source = "model", digest = "' + "0" * 64 + '" }')
    found = failure(config, "base_models")
    assert digest in found
    assert "0" * 64 in found


def test_a_base_model_that_the_sites_own_policy_refuses_fails(config):
    (config.parent / "policy.toml").write_text(POLICY.replace('"any"', '["' + "0" * 64 + '"]'))
    assert "the site's own policy allows none" in failure(config, "base_models")


def test_records_are_counted_by_domain_and_task(config):
    verdict, found = result_of(config, "data")
    assert verdict is Verdict.OK
    assert "sums/instruction" in found


def test_bad_records_are_shown_with_their_lines(config):
    good = (config.parent / "train.jsonl").read_text()
    (config.parent / "train.jsonl").write_text(good + json.dumps({"instruction": "Why?"}) + "\n{broken\n")
    verdict, found = result_of(config, "data")
    assert verdict is Verdict.WARNING
    assert "2 of 42 records" in found
    assert "line 41: has no answer" in found
    assert "line 42: " in found


def test_a_file_that_is_not_there_and_one_without_a_usable_record_fail(config):
    write_records(config.parent / "train.jsonl", [{"text": "nothing of use"}])
    assert "none of 1 records can be used" in failure(config, "data")
    (config.parent / "train.jsonl").unlink()
    assert "train.jsonl" in failure(config, "data")


def test_a_site_without_held_out_records_is_warned(config):
    edit(config, "data = { ", "data = { held_out_fraction = 0, ")
    verdict, found = result_of(config, "data")
    assert verdict is Verdict.WARNING
    assert "none is held out" in found


# --- servers that are not a coordinator ----------------------------------------------------------------------------


@contextmanager
def plain_server(greeting: bytes):
    """Greets whoever connects, and hangs up."""

    class Greeting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(greeting)

    with running(Greeting) as port:
        yield port


@contextmanager
def tls_server(folder: Path, chain: str, key: bytes, *, protocols: list[str]):
    """Shakes hands with that certificate, and says no more."""
    (folder / "chain.pem").write_text(chain)
    (folder / "key.pem").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    context.set_alpn_protocols(protocols)

    class Shaking(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                with context.wrap_socket(self.request, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                pass  # the client has seen enough

    with running(Shaking) as port:
        yield port


@contextmanager
def proxy(*, allows: bool):
    """An HTTP proxy that knows CONNECT; yields its port and what it was asked for."""
    asked: list[str] = []

    class Connecting(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            target = self.rfile.readline().split()[1].decode()
            asked.append(target)
            while self.rfile.readline().strip():
                pass
            if not allows:
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(there, self.request), daemon=True)
                back.start()
                pump(self.request, there)
                back.join()

    with running(Connecting) as port:
        yield port, asked


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@contextmanager
def running(handler: type[socketserver.BaseRequestHandler]):
    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
