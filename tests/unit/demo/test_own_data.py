"""ACCORD_DEMO_DATA: which of a user's data sets are taken, how much of them, and what a mistake in them says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from common.errors import DataInvalid
from demo import domains
from demo.sources import folder
from demo.sources.folder import Limits
from demo.sources.records import Task

LIMITS = Limits(train=40, held_out=10, characters=200, labels=3)


def classification(number: int, *, label: str, domain: str = "bank") -> dict:
    text = f"request {number} about {label}"
    return record(number, "classification", text, output=label.replace("_", " "), domain=domain) | {"label": label}


def ner(number: int, *, marks: bool) -> dict:
    text = f"case {number} has gout" if marks else f"case {number} is well"
    entities = [[text.index("gout"), len(text), "Disease"]] if marks else []
    return record(number, "ner", text, output="Disease: gout" if marks else "None", domain="lab") | {
        "entities": entities
    }


def instruction(number: int, *, answer: str = "yes") -> dict:
    return record(number, "instruction", f"question {number}", output=answer, domain="office")


def record(number: int, task: str, text: str, *, output: str, domain: str) -> dict:
    fields = {"domain": domain, "task": task, "instruction": "Answer.", "input": text, "output": output}
    return {"id": f"{task}-{number}", **fields}


def write_set(data: Path, name: str, *, train: list[dict], held_out: list[dict], part: str = "test") -> folder.DataSet:
    place = data / name
    place.mkdir(parents=True)
    for file, lines in (("train", train), (part, held_out)):
        (place / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return next(data_set for data_set in folder.find_sets(data) if data_set.name == name)


@pytest.fixture
def data(tmp_path) -> Path:
    """One set of each task, and a second classification that comes first by name."""
    place = tmp_path / "data"
    requests = [classification(number, label=f"label_{number % 5}") for number in range(200)]
    write_set(place, "intents", train=requests[:150], held_out=requests[150:])
    write_set(place, "a_intents", train=requests[:150], held_out=requests[150:])
    marked = [ner(number, marks=number % 2 == 0) for number in range(120)]
    write_set(place, "diseases", train=marked[:100], held_out=marked[100:], part="validation")
    questions = [instruction(number) for number in range(80)]
    write_set(place, "questions", train=questions[:60], held_out=questions[60:])
    return place


def test_first_set_of_each_task_is_taken_by_name(data, tmp_path):
    sites = domains.from_folder(data, cache=tmp_path / "cache")
    assert [(site.name, site.task) for site in sites] == [
        ("a-intents", Task.CLASSIFICATION),
        ("diseases", Task.NER),
        ("questions", Task.INSTRUCTION),
    ]


def test_named_sets_are_taken_in_their_order(data, tmp_path):
    environment = {"ACCORD_DEMO_DATA": str(data), "ACCORD_DEMO_SETS": "questions, diseases,intents"}
    assert [site.name for site in domains.choose(tmp_path / "cache", environment)] == [
        "questions",
        "diseases",
        "intents",
    ]


def test_sites_that_share_a_domain_are_told_apart(data, tmp_path):
    sites = domains.from_folder(data, cache=tmp_path / "cache", wanted=("intents", "a_intents", "diseases"))
    assert [site.domain for site in sites] == ["intents", "a-intents", "lab"]
    assert json.loads(sites[0].train_path.read_text().splitlines()[0])["domain"] == "intents"


@pytest.mark.parametrize(
    "wanted", [("intents", "nothing", "diseases"), ("intents",), ("intents", "intents", "diseases")]
)
def test_wrong_names_are_answered_with_the_right_ones(data, tmp_path, wanted):
    with pytest.raises(DataInvalid, match=r"3 different data sets of: a_intents \(classification\), diseases \(ner\)"):
        domains.from_folder(data, cache=tmp_path / "cache", wanted=wanted)


def test_a_change_of_the_data_changes_the_records(data, tmp_path):
    before = domains.from_folder(data, cache=tmp_path / "cache")
    with (data / "diseases" / "train.jsonl").open("a") as file:
        file.write(json.dumps(ner(999, marks=True)) + "\n")
    after = domains.from_folder(data, cache=tmp_path / "cache")
    assert after[1].train_records == before[1].train_records + 1


def test_many_labels_are_cut_to_a_few_of_the_largest_domain(tmp_path):
    train = [classification(number, label=f"label_{number % 12}") for number in range(240)]
    train += [classification(number, label="fare", domain="travel") for number in range(50)]
    held_out = [classification(number, label=f"label_{number % 12}") for number in range(300, 420)]
    sample = folder.take(write_set(tmp_path, "intents", train=train, held_out=held_out), LIMITS)
    labels = Counter(record.label for record in sample.parts.train)
    assert sorted(labels.values()) == [13, 13, 13]
    assert "fare" not in labels
    assert {record.label for record in sample.parts.held_out} == set(labels)
    assert sample.note == "3 of the 13 labels of intents (domain bank)"


def test_few_labels_are_all_kept_without_a_word(tmp_path):
    train = [classification(number, label=f"label_{number % 2}") for number in range(60)]
    held_out = [classification(number, label=f"label_{number % 2}") for number in range(100, 120)]
    sample = folder.take(write_set(tmp_path, "intents", train=train, held_out=held_out), LIMITS)
    assert sample.note == ""
    assert Counter(record.label for record in sample.parts.train) == {"label_0": 20, "label_1": 20}


def test_records_that_mark_nothing_are_thinned_out(tmp_path):
    train = [ner(number, marks=number % 3 == 0) for number in range(200)]
    held_out = [ner(number, marks=number % 2 == 0) for number in range(300, 340)]
    sample = folder.take(write_set(tmp_path, "diseases", train=train, held_out=held_out), LIMITS)
    assert sum(not record.entities for record in sample.parts.train) == 6
    assert (len(sample.parts.train), len(sample.parts.held_out)) == (40, 10)


def test_long_records_are_left_out(tmp_path):
    train = [instruction(number, answer="word " * (number % 2 * 100 + 1)) for number in range(60)]
    sample = folder.take(write_set(tmp_path, "questions", train=train, held_out=[instruction(99)]), LIMITS)
    assert {len(record.output) for record in sample.parts.train} == {5}
    assert len(sample.parts.train) == 30


def test_held_out_records_are_not_trained_on(tmp_path):
    train = [instruction(number) for number in range(20)]
    sample = folder.take(write_set(tmp_path, "questions", train=train, held_out=train[:5]), LIMITS)
    assert len(sample.parts.train) == 15
    assert not set(sample.parts.train) & set(sample.parts.held_out)


def test_test_part_is_preferred_to_validation(tmp_path):
    data_set = write_set(tmp_path, "questions", train=[instruction(1)], held_out=[instruction(2)])
    (data_set.folder / "validation.jsonl").write_text(json.dumps(instruction(3)) + "\n")
    assert data_set.held_out_path.name == "test.jsonl"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": "poetry"}, "task 'poetry' is none of classification, ner, instruction"),
        ({"input": None}, "field 'input' must be a string"),
        (
            {"entities": [[5, 900, "Disease"]]},
            r"entity \[5, 900, 'Disease'\] is not \[start, end, label\] within the input",
        ),
        ({"entities": "gout"}, "field 'entities' must be a list"),
    ],
)
def test_bad_record_is_named_by_file_and_line(tmp_path, change, reason):
    train = [ner(1, marks=True), ner(2, marks=True) | change]
    data_set = write_set(tmp_path, "diseases", train=train, held_out=[ner(3, marks=True)])
    with pytest.raises(DataInvalid, match=rf"diseases/train\.jsonl, line 2: {reason}"):
        folder.take(data_set, LIMITS)


def test_missing_field_is_named(tmp_path):
    train = [instruction(1), {key: value for key, value in instruction(2).items() if key != "output"}]
    data_set = write_set(tmp_path, "questions", train=train, held_out=[instruction(3)])
    with pytest.raises(DataInvalid, match=r"train\.jsonl, line 2: field 'output' is missing"):
        folder.take(data_set, LIMITS)


def test_line_that_is_not_json_is_named(tmp_path):
    data_set = write_set(tmp_path, "questions", train=[instruction(1)], held_out=[instruction(2)])
    data_set.held_out_path.write_text("{broken\n")
    with pytest.raises(DataInvalid, match=r"test\.jsonl, line 1: Expecting property name"):
        folder.take(data_set, LIMITS)


def test_set_of_two_tasks_is_refused(tmp_path):
    train = [instruction(1), classification(2, label="fees")]
    data_set = write_set(tmp_path, "questions", train=train, held_out=[instruction(3)])
    with pytest.raises(DataInvalid, match="record classification-2 is of task classification, not instruction"):
        folder.take(data_set, LIMITS)


def test_set_of_long_records_alone_is_refused(tmp_path):
    long = instruction(1, answer="word " * 100)
    data_set = write_set(tmp_path, "questions", train=[long], held_out=[instruction(3)])
    with pytest.raises(DataInvalid, match="no record has at most 200 characters"):
        folder.take(data_set, LIMITS)


def test_folder_without_data_sets_is_an_error(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataInvalid, match=r"no sub-folder of .* has train\.jsonl and test\.jsonl or validation\.jsonl"):
        folder.find_sets(tmp_path)


def test_missing_task_is_named(tmp_path):
    write_set(tmp_path, "questions", train=[instruction(1)], held_out=[instruction(2)])
    with pytest.raises(
        DataInvalid, match=r"no data set for task classification, ner; there are: questions \(instruction\)"
    ):
        folder.choose_sets(folder.find_sets(tmp_path), wanted=())
