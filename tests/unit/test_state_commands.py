"""The commands that look at a coordinator's database and move it: what they say, and when they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.__main__ import main
from coordinator.cli.exits import Exit
from coordinator.replica import Replica
from coordinator.store.schema import migrate, newest_revision

PASSWORD = "hunter2"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.toml"
    path.write_text('federation = "lab"\ndata_folder = "data"\n')
    (tmp_path / "data").mkdir()
    return path


def checked(config: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["check-config", "--json", "--config", str(config)]) == Exit.OK
    said: dict[str, str] = json.loads(capsys.readouterr().out)
    return said


def test_check_config_says_which_schema_the_database_has(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(config, capsys)["database_schema"].startswith("not made yet")
    assert not (config.parent / "data" / "coordinator.sqlite").exists()
    (config.parent / "data" / "coordinator.sqlite").touch()
    assert checked(config, capsys)["database_schema"].startswith("none, and this version's is")
    migrate(f"sqlite:///{config.parent}/data/coordinator.sqlite")
    assert checked(config, capsys)["database_schema"] == f"{newest_revision()}, this version's"


@pytest.mark.parametrize(
    "url",
    [f"postgresql://accord:{PASSWORD}@127.0.0.1:1/accord", f"postgresql://127.0.0.1:1/accord?password={PASSWORD}"],
)
def test_check_config_lists_a_database_that_does_not_answer_without_its_password(
    config: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(f'{config.read_text()}[database]\nurl = "{url}"\n')
    assert main(["check-config", "--config", str(config)]) == Exit.CONFIG
    said = capsys.readouterr()
    assert "database.url: postgresql://" in said.err
    assert "the server cannot be reached" in said.err
    assert PASSWORD not in said.err + said.out


def test_a_database_is_not_moved_while_a_coordinator_runs_on_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Replica.claim(config.parent / "data")
    words = ["migrate", "--config", str(config), "--to", "postgresql://127.0.0.1:1/accord"]
    assert main(words) == Exit.REFUSED
    assert "a coordinator is running" in capsys.readouterr().err
    del running  # Its lock goes with it, as with its process.
    assert main(words) != Exit.REFUSED
    assert "a coordinator is running" not in capsys.readouterr().err


def test_a_target_is_named_once(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["migrate", "--config", str(config), "--to", "postgresql://h/a", "--to-file", "url"]
    assert main(words) == Exit.USAGE
    assert "leave out one" in capsys.readouterr().err
