"""Listings, page by page, with tokens that are opaque to those who carry them.

A token holds the sort key of the last row that was returned, so rows that come or go meanwhile neither repeat nor hide
others.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Select, and_, or_

from common.errors import InvalidArgument
from coordinator.store.column_types import MAX_WHOLE, UtcTime, Whole
from coordinator.store.interface import Page
from coordinator.store.rows import RowTable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")
Part = str | int | datetime

MAX_TOKEN_LENGTH: Final = 4096


@dataclass(frozen=True, slots=True)
class Listing(Generic[Row]):
    """The rows of a table by `order`: columns that are unique together. Newest first means the highest first."""

    of: RowTable[Row]
    order: tuple[str, ...]
    newest_first: bool

    def page(
        self,
        connection: Connection,
        *,
        page_size: int,
        page_token: str,
        where: Sequence[ColumnElement[bool]] = (),
        scope: tuple[str, ...] = (),
    ) -> Page[Row]:
        """One page of what fits `where`; `scope` says the same in words, so that a token is good for that alone.

        Raises InvalidArgument for a negative page_size or a token that was not made for this listing.
        """
        columns = [self.of.table.c[name] for name in self.order]
        if page_token:
            key = decode_token(page_token, (self.of.table.name, *scope), columns)
            where = (*where, self._beyond(columns, key))
        return self.fetch(
            connection, self.statement(page_size=page_size, where=where), page_size=page_size, scope=scope
        )

    def statement(self, *, page_size: int, where: Sequence[ColumnElement[bool]]) -> Select[tuple[object, ...]]:
        """The query of a page. What is asked all the time is better built once and handed to `fetch`.

        Raises InvalidArgument for a negative page_size.
        """
        if page_size < 0:
            raise InvalidArgument("page_size cannot be negative; 0 takes the default")
        columns = [self.of.table.c[name] for name in self.order]
        statement = self.of.all.where(*where)
        statement = statement.order_by(*(column.desc() if self.newest_first else column for column in columns))
        # One more, so that the last page is known for the last.
        return statement.limit(page_size + 1) if page_size else statement

    def fetch(
        self,
        connection: Connection,
        statement: Select[tuple[object, ...]],
        *,
        page_size: int,
        scope: tuple[str, ...] = (),
    ) -> Page[Row]:
        """The page that `statement` asks for."""
        found = tuple(map(self.of.row, connection.execute(statement)))
        if not page_size or len(found) <= page_size:
            return Page(found)
        found = found[:page_size]
        last = [getattr(found[-1], name) for name in self.order]
        return Page(found, encode_token((self.of.table.name, *scope), last))

    def _beyond(self, columns: Sequence[Column[Part]], key: Sequence[Part]) -> ColumnElement[bool]:
        """Strictly after the key in the listing's order, written out: (a, b) > (x, y) as a > x or (a = x and b > y)."""
        return or_(
            *(
                and_(
                    *(column == part for column, part in zip(columns[:place], key[:place], strict=True)),
                    columns[place] < key[place] if self.newest_first else columns[place] > key[place],
                )
                for place in range(len(columns))
            )
        )


def encode_token(listing: Sequence[str], key: Sequence[Part]) -> str:
    parts = [part.astimezone(UTC).isoformat() if isinstance(part, datetime) else part for part in key]
    text = json.dumps([list(listing), *parts], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str, listing: Sequence[str], columns: Sequence[Column[Part]]) -> tuple[Part, ...]:
    """The key in a token. Raises InvalidArgument unless it was made for this listing and fits the columns."""
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise ValueError("too long")
        content = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        if not isinstance(content, list) or content[:1] != [list(listing)] or len(content) != 1 + len(columns):
            raise ValueError("another listing's token")
        return tuple(_part(part, column) for part, column in zip(content[1:], columns, strict=True))
    except (ValueError, RecursionError, binascii.Error):
        raise InvalidArgument(
            "this page token does not belong to this listing: take it unchanged from the answer before, and keep the "
            "other fields of the request as they were"
        ) from None


def _part(part: object, column: Column[Part]) -> Part:
    if isinstance(column.type, Whole):
        if type(part) is not int or not 0 <= part <= MAX_WHOLE:
            raise ValueError("not a number")
        return part
    if not isinstance(part, str) or "\0" in part:
        raise ValueError("not a text")
    part.encode()  # UnicodeEncodeError is a ValueError.
    if not isinstance(column.type, UtcTime):
        return part
    time = datetime.fromisoformat(part)
    if time.tzinfo is None:
        raise ValueError("not a time")
    return time
