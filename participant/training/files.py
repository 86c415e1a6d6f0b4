"""Rows of data files: JSONL, JSON, CSV and Parquet, each row with the line that a person finds it at.

Knows nothing of what the fields mean. A row that cannot be read is a row with a reason; a file that cannot be read
is DataInvalid.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import DataInvalid
from participant.training.job import DataFormat

Fields = Mapping[str, object]

_FORMAT_OF_ENDING: Final = {
    ".jsonl": DataFormat.JSONL,
    ".ndjson": DataFormat.JSONL,
    ".json": DataFormat.JSON,
    ".csv": DataFormat.CSV,
    ".parquet": DataFormat.PARQUET,
    ".pq": DataFormat.PARQUET,
}
_MAX_CSV_FIELD_CHARACTERS: Final = 16 * 1024 * 1024
_PARQUET_BATCH_ROWS: Final = 1024
# Cells of a CSV file that hold a list are written as JSON.
_CSV_JSON_FIELDS: Final = frozenset({"messages", "entities"})


@dataclass(frozen=True, slots=True)
class Row:
    """One record as the file has it. line: from 1; for Parquet the row's number, from 1."""

    line: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    line: int
    reason: str


def read_rows(path: Path, data_format: DataFormat = DataFormat.AUTO) -> Iterator[Row | UnreadableRow]:
    """Every record of the file, in order. Raises DataInvalid if the file as a whole cannot be read."""
    chosen = _format(path, data_format)
    try:
        if chosen is DataFormat.JSONL:
            yield from _jsonl_rows(path)
        elif chosen is DataFormat.JSON:
            yield from _json_rows(path)
        elif chosen is DataFormat.CSV:
            yield from _csv_rows(path)
        else:
            yield from _parquet_rows(path)
    except OSError as error:
        raise DataInvalid(f"cannot read {path}: {error.strerror or error}") from error


def _format(path: Path, data_format: DataFormat) -> DataFormat:
    if data_format is not DataFormat.AUTO:
        return data_format
    found = _FORMAT_OF_ENDING.get(path.suffix.lower())
    if found is None:
        endings = ", ".join(_FORMAT_OF_ENDING)
        raise DataInvalid(f"{path}: the ending names no format; use one of {endings}, or set the format")
    return found


def _jsonl_rows(path: Path) -> Iterator[Row | UnreadableRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _jsonl_row(number, line)


def _jsonl_row(number: int, line: bytes) -> Row | UnreadableRow:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return UnreadableRow(number, f"not UTF-8: {error.reason} at byte {error.start} of the line")
    except (json.JSONDecodeError, RecursionError) as error:
        return UnreadableRow(number, f"not JSON: {error}")
    return _object_row(number, value)


def _object_row(number: int, value: object) -> Row | UnreadableRow:
    if not isinstance(value, dict):
        return UnreadableRow(number, f"a record is a JSON object, found {_kind(value)}")
    return Row(number, value)


def _json_rows(path: Path) -> Iterator[Row | UnreadableRow]:
    """One array of objects, read element by element so that each keeps its line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    if text[position : position + 1] == "{":
        yield from _jsonl_rows(path)  # many tools write JSONL and call it .json
        return
    if text[position : position + 1] != "[":
        raise DataInvalid(f"{path} is not a JSON array of objects")
    position = _skip_space(text, position + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataInvalid(f"{path} is broken JSON in the record at line {line}: {error}") from error
        yield _object_row(line, value)
        position = _skip_space(text, position)
        if text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif text[position : position + 1] != "]":
            raise DataInvalid(f"{path} is broken JSON after the record at line {line}: expected , or ]")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _csv_rows(path: Path) -> Iterator[Row | UnreadableRow]:
    """A header line, then a record a row; quoted fields may hold line ends. Empty cells are absent fields."""
    csv.field_size_limit(_MAX_CSV_FIELD_CHARACTERS)
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield UnreadableRow(line, f"not CSV: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            if len(set(header)) != len(header):
                raise DataInvalid(f"{path}: the header names a column twice")
            continue
        yield _csv_row(line, header, cells)
    if header is None:
        raise DataInvalid(f"{path} is empty; its first line must name the columns")


def _csv_row(line: int, header: list[str], cells: list[str]) -> Row | UnreadableRow:
    if len(cells) != len(header):
        return UnreadableRow(line, f"has {len(cells)} columns, the header has {len(header)}")
    fields: dict[str, object] = {}
    for column, cell in zip(header, cells, strict=True):
        if any("\ud800" <= character <= "\udfff" for character in cell):
            return UnreadableRow(line, f'"{column}" is not UTF-8')
        if not cell:
            continue
        if column not in _CSV_JSON_FIELDS:
            fields[column] = cell
            continue
        try:
            fields[column] = json.loads(cell)
        except (json.JSONDecodeError, RecursionError) as error:
            return UnreadableRow(line, f'"{column}" is not JSON: {error}')
    return Row(line, fields)


def _parquet_rows(path: Path) -> Iterator[Row | UnreadableRow]:
    import pyarrow as pa  # only sites with Parquet files pay for the import
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(number, {key: value for key, value in fields.items() if value is not None})
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path} is not a readable Parquet file (after {number} rows): {error}") from error


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
