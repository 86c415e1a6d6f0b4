"""The coordinator's configuration file: what is taken, what is refused, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigInvalid
from common.log import LogForm
from coordinator.cli.template import render
from coordinator.config import PkiMode, load_config, parse_config, split_address

MINIMAL = 'federation = "lab"\ndata_folder = "data"\n'
EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "coordinator.toml"


def parse(text: str, folder: Path = Path("/srv")):
    return parse_config(text, folder=folder)


def test_two_lines_are_a_whole_configuration_with_safe_defaults():
    config = parse(MINIMAL)
    assert config.data_folder == Path("/srv/data")
    assert config.database_url == "sqlite:////srv/data/coordinator.sqlite"
    assert config.blobs_url == "file:///srv/data/blobs"
    assert config.admin.listen.startswith("127.0.0.1:")
    assert config.health.http.startswith("127.0.0.1:")
    assert config.log.form is LogForm.JSON
    assert config.certificates.mode is PkiMode.OWN


def test_the_example_is_what_init_writes_and_can_be_loaded():
    text = render(federation="example", data_folder="/var/lib/accord-coordinator", host_names=["accord.example.org"])
    assert EXAMPLE.read_text() == text
    assert load_config(EXAMPLE).participants.public_address == "accord.example.org:8443"


# What the example shows in these lines is what one might write there.
NO_DEFAULTS = tuple(
    f"# {key} "
    for key in (
        *("url", "url_file", "endpoint", "region", "credentials_file"),
        *("certificate", "key", "participant_cas", "operator_cas", "client_ca", "ca", "ca_file"),
    )
)


def test_every_default_that_the_example_shows_is_the_default():
    shown = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line and '"files"' not in line else line
        for line in EXAMPLE.read_text().splitlines()
        if not line.startswith(NO_DEFAULTS)
    )
    written_out, left_out = parse(shown), parse(EXAMPLE.read_text())
    assert written_out == left_out


def test_names_with_quotes_survive_the_template():
    text = render(federation="lab", data_folder='/srv/a "b" \\c', host_names=["::1"])
    config = parse(text)
    assert str(config.data_folder) == '/srv/a "b" \\c'
    assert config.participants.public_address == "[::1]:8443"


def test_every_mistake_is_told_at_once_with_its_path():
    with pytest.raises(ConfigInvalid) as refused:
        parse(
            'federation = "Upper Case"\n'
            "[participants]\nlisten = 'nowhere'\n"
            "[database]\nurl = '/a/path'\npassword = 'x'\n"
            "[certificates]\nmode = 'files'\nkey = 'k.pem'\n"
            "[limits]\nmessage_bytes = 10\n"
        )
    message = refused.value.message
    for part in (
        "federation:",
        "data_folder: Field required",
        "participants.listen: write HOST:PORT",
        "database.url: write a URL",
        "database.password: no such key",
        'certificates: mode = "files" also needs certificate, participant_cas, operator_cas',
        "limits.message_bytes:",
    ):
        assert part in message


def test_a_mistake_never_shows_the_value_of_a_url():
    with pytest.raises(ConfigInvalid) as refused:
        parse(MINIMAL + "[database]\nurl = 'postgres:secret-word@host'\n")
    assert "secret-word" not in refused.value.message
    assert "secret-word" not in repr(parse(MINIMAL + "[database]\nurl = 'postgres://u:secret-word@host/db'\n"))


def test_two_listeners_do_not_share_a_port_but_may_both_take_any():
    with pytest.raises(ConfigInvalid, match=r"two listeners share 127\.0\.0\.1:9000"):
        parse(MINIMAL + "[admin]\nlisten='127.0.0.1:9000'\n[health]\nhttp='127.0.0.1:9000'\n")
    config = parse(MINIMAL + "[admin]\nlisten='127.0.0.1:0'\n[health]\nhttp='127.0.0.1:0'\n")
    assert split_address(config.admin.listen) == ("127.0.0.1", 0)


def test_files_of_an_own_pki_are_relative_to_the_configuration():
    files = "".join(f"{name} = '{name}.pem'\n" for name in ("certificate", "key", "participant_cas", "operator_cas"))
    config = parse(f"{MINIMAL}[certificates]\nmode = 'files'\n{files}", Path("/etc/accord"))
    assert config.certificates.operator_cas == Path("/etc/accord/operator_cas.pem")


def test_files_without_their_mode_are_a_mistake():
    with pytest.raises(ConfigInvalid, match='only with mode = "files"'):
        parse(MINIMAL + "[certificates]\nkey = 'k.pem'\n")


def test_local_names_are_in_the_certificate_whatever_is_configured():
    config = parse(MINIMAL + "[certificates]\nhost_names = ['accord.example.org']\n")
    assert config.host_names == ("accord.example.org", "localhost", "127.0.0.1")


@pytest.mark.parametrize("address", ["[::1]:8443", "0.0.0.0:0", "accord.example.org:65535"])
def test_addresses_are_taken_in_their_usual_forms(address):
    assert parse(f"{MINIMAL}[participants]\nlisten = '{address}'\n").participants.listen == address


@pytest.mark.parametrize("address", ["::1:8443", "host", "host:65536", "host:port", "", "http://host:1"])
def test_what_is_not_an_address_is_refused(address):
    with pytest.raises(ConfigInvalid, match=r"participants\.listen"):
        parse(f"{MINIMAL}[participants]\nlisten = '{address}'\n")


def test_a_file_that_is_missing_or_not_toml_says_so(tmp_path):
    with pytest.raises(ConfigInvalid, match="accord-coordinator init"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("federation = ")
    with pytest.raises(ConfigInvalid, match="is not TOML"):
        load_config(tmp_path / "broken.toml")
