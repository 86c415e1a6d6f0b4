"""Settings of metrics' TLS and of traces, in both services' files: what does not fit is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigInvalid
from common.http_listener import HttpTls, serving_http
from coordinator.config import parse_config
from participant.config import load_config

COORDINATOR = 'federation = "lab"\ndata_folder = "data"\n'
SITE = """
state_directory = "state"
policy_file = "policy.toml"
base_models = [{ source = "model" }]
data = { train_file = "train.jsonl" }
charter = { mode = "coordinator" }
"""
FILES = 'certificate = "m.pem"\nkey = "m.key"\nclient_ca = "ca.pem"\n'


def coordinators(text: str, folder: Path):
    return parse_config(COORDINATOR + text, folder=folder)


def sites(text: str, folder: Path):
    file = folder / "participant.toml"
    file.write_text(SITE + text)
    return load_config(file)


@pytest.mark.parametrize("service", [coordinators, sites])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[metrics]\ncertificate = "m.pem"\nkey = "m.key"\n', "mutual TLS also needs client_ca"),
        ('[metrics]\nclient_ca = "ca.pem"\n', "mutual TLS also needs certificate, key"),
        ('[tracing]\nendpoint = "collector:4317"\n', 'write "http://HOST:4317"'),
        ('[tracing]\nendpoint = "https://collector"\n', 'write "http://HOST:4317"'),
        ('[tracing]\nendpoint = "http://user:secret@collector:4317"\n', 'write "http://HOST:4317"'),
        ('[tracing]\nendpoint = "http://collector:99999"\n', 'write "http://HOST:4317"'),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(service, text, told, tmp_path):
    with pytest.raises(ConfigInvalid) as refused:
        service(text, tmp_path)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_coordinators_files_need_a_listener_of_their_own(tmp_path):
    with pytest.raises(ConfigInvalid, match=r"set metrics\.listen, too"):
        coordinators(f"[metrics]\n{FILES}", tmp_path)


def test_files_lie_beside_the_configuration_or_among_the_services_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/cred")
    files = FILES.replace('"m.key"', '"${CREDENTIALS_DIRECTORY}/m.key"')
    expected = HttpTls(tmp_path / "m.pem", Path("/run/cred/m.key"), tmp_path / "ca.pem")
    assert coordinators(f'[metrics]\nlisten = "127.0.0.1:0"\n{files}', tmp_path).metrics.tls == expected
    assert sites(f"[metrics]\nport = 9464\n{files}", tmp_path).metrics.tls == expected
    assert sites("", tmp_path).metrics.tls is None


def test_files_that_are_no_use_are_told_before_the_listener_opens(tmp_path):
    for name in ("m.pem", "m.key", "ca.pem"):
        (tmp_path / name).write_text("nothing")
    tls = HttpTls(tmp_path / "m.pem", tmp_path / "m.key", tmp_path / "ca.pem")
    listener = serving_http("127.0.0.1", 0, lambda environment, start: [], tls=tls)
    with pytest.raises(ConfigInvalid, match=r"m\.pem and .*m\.key are no use for TLS"), listener:
        pass
