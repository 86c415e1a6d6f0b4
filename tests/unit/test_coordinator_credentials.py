"""What systemd hands to the coordinator alone is found by the configuration's placeholder."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigInvalid
from coordinator.config import parse_config

BASE = 'federation = "north"\ndata_folder = "data"\n'
URL = "postgresql+psycopg://accord:s3cr3t@db/accord"


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def test_the_databases_url_comes_from_a_credential(tmp_path, credentials):
    (credentials / "database.url").write_text(URL + "\n")
    config = parse_config(f'{BASE}[database]\nurl_file = "${{CREDENTIALS_DIRECTORY}}/database.url"', folder=tmp_path)
    assert config.database_url == URL
    assert "s3cr3t" not in repr(config)


def test_outside_the_service_the_running_ones_credentials_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    config = parse_config(f'{BASE}[database]\nurl_file = "${{CREDENTIALS_DIRECTORY}}/database.url"', folder=tmp_path)
    with pytest.raises(ConfigInvalid, match=r"/run/credentials/accord-coordinator\.service/database\.url"):
        _ = config.database_url


@pytest.mark.parametrize(("content", "said"), [("", "is empty"), ("s3cr3t", "is not a URL")])
def test_a_credential_that_is_no_url_is_named_and_not_shown(tmp_path, credentials, content, said):
    (credentials / "database.url").write_text(content)
    config = parse_config(f'{BASE}[database]\nurl_file = "${{CREDENTIALS_DIRECTORY}}/database.url"', folder=tmp_path)
    with pytest.raises(ConfigInvalid, match=said) as error:
        _ = config.database_url
    assert "s3cr3t" not in error.value.message


def test_a_url_and_a_file_of_it_are_a_mistake(tmp_path):
    with pytest.raises(ConfigInvalid, match="leave out one"):
        parse_config(f'{BASE}[database]\nurl = "{URL}"\nurl_file = "url"', folder=tmp_path)


def test_keys_of_an_organisations_pki_may_be_credentials_too(tmp_path, credentials):
    files = "\n".join(f'{name} = "{name}.pem"' for name in ("certificate", "participant_cas", "operator_cas"))
    text = f'{BASE}[certificates]\nmode = "files"\nkey = "${{CREDENTIALS_DIRECTORY}}/tls.key"\n{files}'
    config = parse_config(text, folder=tmp_path)
    assert config.certificates.key == credentials / "tls.key"
    assert config.certificates.certificate == tmp_path / "certificate.pem"
