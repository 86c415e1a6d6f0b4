"""The demo's built-in records: whole, clean, apart, and the same on every machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from common.errors import DataInvalid
from demo import domains
from demo.sources.records import Task


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo-records")


@pytest.fixture(scope="session")
def sites(cache) -> dict[str, domains.Site]:
    return {site.name: site for site in domains.built_in(cache)}


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_three_sites_have_three_tasks_and_three_domains(sites):
    assert list(sites) == ["clinic", "smarthome", "helpdesk"]
    assert {site.task for site in sites.values()} == set(Task)
    assert len({site.domain for site in sites.values()}) == 3


@pytest.mark.parametrize("name", ["clinic", "smarthome", "helpdesk"])
def test_files_hold_as_many_records_as_the_site_says(sites, name):
    site = sites[name]
    train, held_out = records(site.train_path), records(site.held_out_path)
    assert (len(train), len(held_out)) == (site.train_records, site.held_out_records)
    assert len(train) == 320
    assert 50 <= len(held_out) <= 80
    assert {record["task"] for record in (*train, *held_out)} == {site.task.value}
    assert {record["domain"] for record in (*train, *held_out)} == {site.domain}


@pytest.mark.parametrize("name", ["clinic", "smarthome", "helpdesk"])
def test_no_record_is_in_both_parts_nor_twice_in_one(sites, name):
    both = [*records(sites[name].train_path), *records(sites[name].held_out_path)]
    assert max(Counter((record["instruction"], record["input"]) for record in both).values()) == 1
    assert max(Counter(record["id"] for record in both).values()) == 1


@pytest.mark.parametrize("name", ["clinic", "smarthome", "helpdesk"])
def test_text_is_clean(sites, name):
    for record in (*records(sites[name].train_path), *records(sites[name].held_out_path)):
        for field in ("instruction", "input", "output"):
            text = record[field]
            assert text == text.strip()
            assert text
            assert "  " not in text
            assert not any(mark in text for mark in "\t\r\u00a0\ufffd")
        assert "\n" not in record["input"]


def test_clinic_has_equally_many_records_of_every_label(sites):
    clinic = sites["clinic"]
    assert len(clinic.labels) == 8
    for path, each in ((clinic.train_path, 40), (clinic.held_out_path, 10)):
        assert Counter(record["label"] for record in records(path)) == dict.fromkeys(clinic.labels, each)


def test_clinic_answers_with_the_label(sites):
    assert all(record["output"] == record["label"] for record in records(sites["clinic"].held_out_path))


def test_smart_home_marks_say_what_the_answer_says(sites):
    for record in records(sites["smarthome"].train_path):
        lines = [f"{label}: {record['input'][start:end]}" for start, end, label in record["entities"]]
        assert record["output"] == ("\n".join(lines) or "None")


def test_smart_home_has_few_records_that_name_nothing_and_all_types(sites):
    for path in (sites["smarthome"].train_path, sites["smarthome"].held_out_path):
        part = records(path)
        assert 0.1 < sum(record["output"] == "None" for record in part) / len(part) < 0.2
    train = records(sites["smarthome"].train_path)
    types = Counter(label for record in train for _, _, label in record["entities"])
    assert set(types) == {"Device", "Place", "Value", "Color", "Item"}
    assert min(types.values()) >= 10


def test_help_desk_keeps_a_command_in_one_part(sites):
    desk = sites["helpdesk"]
    commands = {record["output"] for record in records(desk.train_path)}
    assert commands.isdisjoint(record["output"] for record in records(desk.held_out_path))


def test_records_are_the_same_on_every_machine(sites):
    """A change of these digests is a change of the demo's figures: then say so where the figures are."""
    digests = {
        name: hashlib.sha256(site.train_path.read_bytes() + site.held_out_path.read_bytes()).hexdigest()[:12]
        for name, site in sites.items()
    }
    assert digests == {"clinic": "2961f8d4305f", "smarthome": "83ee5d1c70d2", "helpdesk": "d257cc4029b9"}


def test_second_call_takes_what_the_first_one_built(cache, sites):
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.jsonl")}
    assert tuple(sites.values()) == domains.built_in(cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.jsonl")} == before


@pytest.mark.parametrize("damage", ["cut", "missing", "no list"])
def test_damaged_records_are_built_again(cache, sites, tmp_path, damage):
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    (file,) = copy.glob("*/clinic/heldout.jsonl")
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-50])
        case "missing":
            file.unlink()
        case "no list":
            (file.parents[1] / "sites.json").write_text("[{}]")
    domains.built_in(copy)
    assert file.read_bytes() == sites["clinic"].held_out_path.read_bytes()
    assert [path.name for path in copy.iterdir()] == [path.name for path in cache.iterdir()]


def test_named_sets_without_a_folder_are_an_error(tmp_path):
    with pytest.raises(DataInvalid, match="ACCORD_DEMO_DATA"):
        domains.choose(tmp_path, {"ACCORD_DEMO_SETS": "dolly"})


def test_command_prints_counts_and_files(cache, capsys):
    assert domains.main([str(cache)]) == 0
    printed = capsys.readouterr().out
    assert "clinic" in printed
    assert "320 training records" in printed


def test_command_explains_a_bad_folder(tmp_path, capsys):
    assert domains.main([str(tmp_path), "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
