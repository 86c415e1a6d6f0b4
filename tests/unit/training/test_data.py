from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataInvalid
from common.instructions import Task
from participant.training.data import Chat, Exchange, choose, load, read_records
from participant.training.files import Row
from participant.training.files import read_rows as read_file_rows
from participant.training.job import DataFormat, DataSettings
from participant.training.scoring import Mention
from participant.training.templates import Role

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40).filter(str.strip)


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def example(number, **fields):
    return {"instruction": f"Do thing {number}.", "output": f"Done {number}.", **fields}


# --- conventions ------------------------------------------------------------------------------------------------------


@given(instruction=TEXT, given=st.one_of(st.just(""), TEXT), answer=TEXT)
def test_alpaca_dolly_and_prompt_completion_say_the_same(tmp_path_factory, instruction, given, answer):
    folder = tmp_path_factory.mktemp("data")
    alpaca = {"instruction": instruction, "input": given, "output": answer}
    dolly = {"instruction": instruction, "context": given, "response": answer}
    records, report = read_records(write_jsonl(folder / "a.jsonl", [alpaca, dolly]))
    assert report.bad == 0
    assert records[0].content == records[1].content == Exchange(instruction.strip(), given.strip(), answer.strip())
    plain, _ = read_records(write_jsonl(folder / "b.jsonl", [{"prompt": instruction, "completion": answer}]))
    assert plain[0].content == Exchange(instruction.strip(), "", answer.strip())


@given(texts=st.lists(TEXT, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0), system=st.booleans())
def test_chat_messages_keep_their_turns(tmp_path_factory, texts, system):
    roles = ["user", "assistant"] * (len(texts) // 2)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    if system:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    path = write_jsonl(tmp_path_factory.mktemp("data") / "a.jsonl", [{"messages": messages}])
    records, _ = read_records(path)
    content = records[0].content
    assert isinstance(content, Chat)
    assert [(turn.role.value, turn.content) for turn in content.turns] == [
        (message["role"], message["content"].strip()) for message in messages
    ]
    assert content.turns[-1].role is Role.ASSISTANT


@given(
    records=st.lists(
        st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT, "domain": TEXT}),
        min_size=1,
        max_size=5,
    )
)
def test_every_format_gives_the_same_records(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("data")
    # A carriage return alone is a line end to a CSV file's readers and writers alike; elsewhere it is a character.
    records = [{key: value.replace("\r", " ") or "x" for key, value in record.items()} for record in records]
    write_jsonl(folder / "a.jsonl", records)
    (folder / "a.json").write_text(json.dumps(records, indent=1))
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output", "domain"])
        writer.writeheader()
        writer.writerows(records)
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet")
    expected = [(record.content, record.domain, record.digest) for record in read_records(folder / "a.jsonl")[0]]
    for name in ("a.json", "a.csv", "a.parquet"):
        found, report = read_records(folder / name)
        assert [(record.content, record.domain, record.digest) for record in found] == expected, name
        assert report.bad == 0


def test_task_is_the_field_or_follows_from_label_and_entities(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            example(1),
            example(2, label="red"),
            example(3, input="flu here", entities=[[0, 3, "Disease"]], output="Disease: flu"),
            example(4, task="ner", output="Disease: flu\nDisease: gout"),
            {"instruction": "Which colour?", "label": "red"},
        ],
    )
    records, _ = read_records(path)
    assert [record.task for record in records] == [
        Task.INSTRUCTION,
        Task.CLASSIFICATION,
        Task.NER,
        Task.NER,
        Task.CLASSIFICATION,
    ]
    assert records[2].mentions == (Mention("Disease", "flu"),)
    assert {mention.text for mention in records[3].mentions} == {"flu", "gout"}
    assert isinstance(records[4].content, Exchange)
    assert records[4].content.output == "red"


def test_an_entity_record_without_output_gets_one(tmp_path):
    record = {"instruction": "List.", "input": "flu and gout", "entities": [[0, 3, "D"], [8, 12, "D"]]}
    none = {"instruction": "List.", "input": "nothing", "entities": []}
    records, _ = read_records(write_jsonl(tmp_path / "a.jsonl", [record, none]))
    outputs = [record.content.output for record in records if isinstance(record.content, Exchange)]
    assert outputs == ["D: flu\nD: gout", "None"]


def test_offsets_survive_parquets_lists_of_one_type(tmp_path):
    record = {"instruction": "List.", "input": "flu", "output": "D: flu", "entities": [["0", "3", "D"]]}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
    records, _ = read_records(tmp_path / "a.parquet")
    assert records[0].mentions == (Mention("D", "flu"),)


# --- bad records ------------------------------------------------------------------------------------------------------

BAD_RECORDS = {
    "[1, 2]": "a record is a JSON object, found a list",
    '{"instruction": "x"': "not JSON",
    '{"text": "x"}': "has none of the known fields",
    '{"instruction": "", "output": "x"}': "has no instruction",
    '{"instruction": "x", "output": "  "}': "has no answer",
    '{"instruction": "x"}': "has no answer",
    '{"instruction": "x", "output": 4}': '"output" must be text, found int',
    '{"instruction": "x", "output": "y", "task": "poetry"}': '"task" is none of instruction, classification, ner',
    '{"instruction": "x", "output": "y", "domain": 3}': '"domain" must be text',
    '{"instruction": "x", "input": "a", "context": "b", "output": "y"}': "mixes Alpaca's fields",
    '{"instruction": "x", "input": "abc", "output": "D: abc", "entities": [[0, 9, "D"]]}': "the input has 3 characters",
    '{"instruction": "x", "input": "abc", "output": "D: abc", "entities": [[0, "D"]]}': "must be [start, end, label]",
    '{"messages": []}': "must be a list",
    '{"messages": [{"role": "user", "content": "x"}]}': "last message is not the assistant's",
    '{"messages": [{"role": "assistant", "content": "x"}]}': "the assistant speaks before the user",
    '{"messages": [{"role": "robot", "content": "x"}]}': "a role that is none of system, user, assistant",
    '{"messages": [{"role": "user", "content": null}]}': "message 1 has no text",
    '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}': "are both the user's",
}


@pytest.mark.parametrize("line", BAD_RECORDS)
def test_a_bad_record_is_listed_with_its_line_and_reason(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(example(1)) + "\n\n" + line + "\n" + json.dumps(example(2)) + "\n")
    records, report = read_records(path)
    assert len(records) == 2
    assert (report.read, report.used, report.bad) == (3, 2, 1)
    assert report.bad_examples[0].line == 3
    assert BAD_RECORDS[line] in report.bad_examples[0].reason


@given(secret=st.text(min_size=12, alphabet="QXZ"))
def test_reasons_never_quote_what_a_record_holds(tmp_path_factory, secret):
    lines = [
        line.replace("robot", secret).replace("poetry", secret).replace('"x"', f'"{secret}"') for line in BAD_RECORDS
    ]
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    path.write_text("\n".join([json.dumps(example(1)), *lines]))
    _, report = read_records(path)
    assert report.bad == len(BAD_RECORDS)
    assert not any(secret in item.reason for item in report.bad_examples)


def test_every_bad_record_is_counted_though_only_the_first_are_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(example(1)) + "\n" + "{}\n" * 100)
    _, report = read_records(path)
    assert (report.read, report.bad, len(report.bad_examples)) == (101, 100, 20)


def test_a_file_with_no_usable_record_is_an_error_that_shows_why(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\nnonsense\n')
    with pytest.raises(DataInvalid, match=r"none of 2 records.*line 1: has none.*line 2: not JSON"):
        read_records(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_an_empty_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataInvalid):
        read_records(tmp_path / name)


def test_a_missing_file_and_an_unknown_ending_say_so(tmp_path):
    with pytest.raises(DataInvalid, match="No such file"):
        read_records(tmp_path / "a.jsonl")
    with pytest.raises(DataInvalid, match="set the format"):
        read_records(tmp_path / "a.txt")


def test_bytes_that_are_no_utf8_spoil_one_line_only(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(example(1)).encode() + b"\n" + b'{"instruction": "\xff", "output": "x"}\n')
    records, report = read_records(path)
    assert len(records) == 1
    assert report.bad_examples[0].line == 2
    assert "not UTF-8" in report.bad_examples[0].reason


def test_json_elements_keep_their_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"instruction": "a",\n  "output": "b"},\n\n {"instruction": "c"}\n]')
    _, report = read_records(path)
    assert report.bad_examples[0].line == 5


def test_broken_json_names_the_line_of_the_record(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"instruction": "a", "output": "b"},\n {"instruction": oops}\n]')
    with pytest.raises(DataInvalid, match="record at line 3"):
        read_records(path)


def test_json_lines_under_the_name_of_json_are_read(tmp_path):
    path = write_jsonl(tmp_path / "a.json", [example(1), example(2)])
    assert len(read_records(path)[0]) == 2


def test_csv_rows_keep_their_lines_across_quoted_line_ends(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('Instruction,Output\n"two\nlines",yes\nonly one\nlast,ok\n')
    records, report = read_records(path)
    assert [record.line for record in records] == [2, 5]
    assert (report.bad_examples[0].line, report.bad_examples[0].reason) == (4, "has 1 columns, the header has 2")


def test_csv_cells_may_hold_messages_as_json(tmp_path):
    messages = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [messages], ["[oops"]])
    records, report = read_records(tmp_path / "a.csv")
    assert len(records) == 1
    assert '"messages" is not JSON' in report.bad_examples[0].reason


def test_a_format_can_be_set_against_the_ending(tmp_path):
    path = write_jsonl(tmp_path / "data.txt", [example(1)])
    rows = list(read_file_rows(path, DataFormat.JSONL))
    assert [row.fields["output"] for row in rows if isinstance(row, Row)] == ["Done 1."]


# --- train and held-out -----------------------------------------------------------------------------------------------


def test_a_split_is_the_same_every_time_and_whatever_the_order(tmp_path):
    records = [example(number) for number in range(200)]
    first = load(DataSettings(train_path=write_jsonl(tmp_path / "a.jsonl", records), held_out_fraction=0.2))
    second = load(DataSettings(train_path=write_jsonl(tmp_path / "b.jsonl", records[::-1]), held_out_fraction=0.2))
    assert {record.digest for record in first.held_out} == {record.digest for record in second.held_out}
    assert 20 <= len(first.held_out) <= 60
    report = first.train_report
    assert report.read == 200 == report.used + report.held_out + report.bad
    assert first.held_out_report.used == len(first.held_out)


@given(numbers=st.lists(st.integers(0, 20), min_size=2, max_size=60))
def test_no_question_is_on_both_sides_of_a_split(tmp_path_factory, numbers):
    records = [example(1000), *(example(number, output=f"{place}") for place, number in enumerate(numbers))]
    path = write_jsonl(tmp_path_factory.mktemp("data") / "a.jsonl", records)
    data = load(DataSettings(train_path=path, held_out_fraction=0.3))
    assert {record.digest for record in data.train}.isdisjoint(record.digest for record in data.held_out)
    assert len(data.train) + len(data.held_out) == len(records)


def test_training_records_that_are_also_held_out_are_removed_and_counted(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [example(number) for number in range(10)])
    # Case, white space and another answer do not make another question.
    held_out = write_jsonl(tmp_path / "held.jsonl", [{"instruction": " do  THING 3.", "output": "Other."}])
    data = load(DataSettings(train_path=train, held_out_path=held_out))
    assert data.train_report.duplicates == 1
    assert [record.line for record in data.train] == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_a_training_file_that_is_all_held_out_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [example(1)])
    with pytest.raises(DataInvalid, match="1 also among the held-out"):
        load(DataSettings(train_path=path, held_out_path=path))


def test_records_over_a_limit_are_left_out_by_hash_and_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [example(number) for number in range(50)])
    data = load(DataSettings(train_path=path, held_out_fraction=0.0, train_limit=10))
    assert (data.train_report.used, data.train_report.left_out) == (10, 40)
    everything = load(DataSettings(train_path=path, held_out_fraction=0.0))
    assert data.train == choose(everything.train, 10)


def test_records_without_entities_are_thinned_out_to_the_part_asked_for(tmp_path):
    having = [{"instruction": "L", "input": f"flu {n}", "entities": [[0, 3, "D"]]} for n in range(17)]
    without = [{"instruction": "L", "input": f"none {n}", "entities": []} for n in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", [*having, *without, example(1)])
    data = load(DataSettings(train_path=path, held_out_fraction=0.0, max_none_fraction=0.15))
    none = [record for record in data.train if record.task is Task.NER and not record.mentions]
    assert (len(none), len(data.train)) == (3, 21)
    assert data.train_report.left_out == 27


def test_domains_are_counted_and_default_to_the_sites(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [example(1), example(2, domain="law"), example(3, domain="law")])
    data = load(DataSettings(train_path=path, held_out_fraction=0.0, default_domain="bank"))
    assert [(count.domain, count.records) for count in data.train_report.domains] == [("bank", 1), ("law", 2)]
