"""What the documents point at is there: links, and paths of the tree. Every block of theirs is tried by a test."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from common import jsonform
from coordinator.config import parse_config
from coordinator.privacy_planning import AskedPrivacy
from participant.config import load_config
from participant.policy_file import load_policy
from tests.pages import DOCS, README, blocks_of
from tests.programs import ROOT, debian_program

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TREE_PATH = re.compile(
    r"`((?:common|coordinator|participant|protos|deploy|tests|benchmarks|docs|experiments|demo)/[\w./-]+)`"
)
PAGES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
]


def anchors(page: Path) -> set[str]:
    """As the usual renderers make them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_path_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(target)
    # A part in capitals stands for something: experiments/out/PRESET.
    named = [path for path in TREE_PATH.findall(text) if not any(part.isupper() for part in path.split("/"))]
    broken += [path for path in named if not (ROOT / path).exists()]
    assert broken == []


# --- blocks -----------------------------------------------------------------------------------------------------

GUIDES = (README, *sorted(DOCS.glob("*.md")))
BLOCKS = [(page, block) for page in GUIDES for block in blocks_of(page) if block.language != "text"]
SHOWN = [(page, block) for page, block in BLOCKS if block.mark == "config"]
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))


def place_of(one):
    return one.name if isinstance(one, Path) else str(one.line)


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=place_of)
def test_every_block_says_who_tries_it(page, block):
    assert block.mark in ("run", "config", "by hand"), f"{page.name}:{block.line}: mark this block, see tests/pages.py"
    if block.mark == "run":
        assert page.name in TESTS
    if block.mark == "config":
        assert block.name in READERS


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_no_block_is_without_a_language(page):
    fences = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(fences[0::2])
    assert not any(fences[1::2])


def read_by_the_coordinator(text, folder):
    known = {"federation": '"lab"', "data_folder": '"data"'}
    lines = [f"{key} = {value}" for key, value in known.items() if key not in tomllib.loads(text)]
    parse_config("\n".join([*lines, text]), folder=folder)


def read_by_a_participant(text, folder):
    file = folder / "participant.toml"
    file.write_text(
        'state_directory = "state"\npolicy_file = "policy.toml"\nbase_models = [{ source = "model" }]\n'
        f'data = {{ train_file = "train.jsonl" }}\ncharter = {{ mode = "coordinator" }}\n{text}'
    )
    load_config(file)


def read_by_both(text, folder):
    read_by_the_coordinator(text, folder)
    read_by_a_participant(text, folder)


def read_as_policy(text, folder):
    example = tomllib.loads((ROOT / "deploy" / "examples" / "policy.toml").read_text(encoding="utf-8"))
    file = folder / "policy.toml"
    rest = {key: value for key, value in example.items() if key not in tomllib.loads(text)}
    file.write_text("".join(f"{key} = {inline(value)}\n" for key, value in rest.items()) + text)
    load_policy(file)


def inline(value):
    """A value as TOML in one line."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {inline(one)}' for key, one in value.items())} }}"
    return json.dumps(value)


def read_as_settings(text, folder):
    """Of a run. What a plan makes of them, the tests of planning say."""
    jsonform.decode(tomllib.loads(text)["privacy_json"], AskedPrivacy, what="privacy_json")


def read_by_prometheus(text, folder):
    for name in ("ca.pem", "prometheus.pem", "prometheus.key", "coordinator.rules.yml"):
        (folder / name).touch()
    file = folder / "prometheus.yml"
    file.write_text(text if text.startswith("scrape_configs:") else f"scrape_configs:\n{text}")
    program = debian_program("promtool", package="prometheus")
    checked = subprocess.run([program, "check", "config", "--syntax-only", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def read_by_haproxy(text, folder):
    file = folder / "haproxy.cfg"
    file.write_text(re.sub(r"(one|two)\.internal", "127.0.0.1", text))
    program = debian_program("haproxy", package="haproxy")
    checked = subprocess.run([program, "-c", "-dW", "-f", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def read_as_credentials(text, folder):
    assert re.fullmatch(r"\[default]\naws_access_key_id = \S+\naws_secret_access_key = \S+\n", text)


READERS = {
    "coordinator": read_by_the_coordinator,
    "participant": read_by_a_participant,
    "services": read_by_both,
    "policy": read_as_policy,
    "settings": read_as_settings,
    "prometheus": read_by_prometheus,
    "haproxy": read_by_haproxy,
    "credentials": read_as_credentials,
    "json": lambda text, folder: json.loads(text),
}


@pytest.mark.parametrize(("page", "block"), SHOWN, ids=place_of)
def test_what_is_shown_of_a_file_is_taken_by_who_reads_it(page, block, tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for name in ("proxy-password", "s3.ini", "database.url"):
        (tmp_path / name).touch(mode=0o600)
    READERS[block.name](block.text, tmp_path)
