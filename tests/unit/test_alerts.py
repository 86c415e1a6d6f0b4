"""Alert rules: each parses, is seen firing by a test, says what a person needs, and has its entry in the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics_page import declared, services
from tests.programs import debian_program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = (FOLDER / "coordinator.rules.yml", FOLDER / "participant.rules.yml")
TESTS = FOLDER / "rules.test.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"


def rules() -> list[dict[str, Any]]:
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = debian_program("promtool", package="prometheus")
    return subprocess.run([program, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=100)


def test_the_rules_are_right_and_fire_when_they_should_and_not_otherwise():
    checked = promtool("check", "rules", *(file.name for file in RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", TESTS.name)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_seen_firing_by_a_test():
    firing = {
        re.search(r'alertname="(\w+)"', sample["labels"])[1]  # type: ignore[index]
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for question in test["promql_expr_test"]
        for sample in question["exp_samples"]
    }
    assert firing == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(alert):
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    words = alert["annotations"]
    assert set(words) == {"summary", "description", "runbook_url"}
    assert len(words["summary"]) < 120
    assert len(words["description"].split()) >= 10
    assert words["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"


def test_the_runbook_has_an_entry_with_something_to_do_for_each_alert_and_no_other():
    text = RUNBOOK.read_text(encoding="utf-8")
    entries = dict(re.findall(r"^### (Accord\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(entries) == {alert["alert"] for alert in ALERTS}
    assert [name for name, entry in entries.items() if "\n- " not in entry] == []


def test_rules_ask_for_metrics_that_exist():
    known = {"up", "ALERTS"} | {rule["record"] for rule in rules() if "record" in rule}
    for registry in services().values():
        for one in declared(registry):
            known |= {one.name, *(f"{one.name}_{part}" for part in ("bucket", "sum", "count"))}
    used = {name for rule in rules() for name in re.findall(r"\baccord[\w:]*\b", strip(rule["expr"]))}
    assert used - known == set()


def strip(expression: str) -> str:
    """Without the values of labels."""
    return re.sub(r'"[^"]*"', "", expression)
