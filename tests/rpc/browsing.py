"""A reader of the web page without a browser: requests over real TLS, and what stands in the answers."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY

WAIT_SECONDS = 20.0
VOID = frozenset({"input", "link", "meta", "br", "img", "hr"})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def page(self) -> Document:
        return Document.of(self.text)


@dataclass
class Document(HTMLParser):
    """What a document consists of, as a browser reads it."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def of(cls, text: str) -> Document:
        found = cls()
        found.feed(text)
        found.close()
        assert found.open == [], "every element is closed"
        return found

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def links(self) -> set[str]:
        return {values["href"] for tag, values in self.elements if tag == "a" and "href" in values}


@dataclass
class Reader:
    """Somebody who looks: by an operator's certificate, by a token, or by neither."""

    address: str
    authority: Path
    certificate: Path | None = None
    key: Path | None = None
    token: str = ""

    @classmethod
    def of_folder(cls, address: str, folder: Path) -> Reader:
        """An operator, whose files lie in a folder."""
        return cls(address, folder / OPERATOR_CA, folder / OPERATOR_CERTIFICATE, folder / OPERATOR_KEY)

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority))
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPSConnection]:
        found = http.client.HTTPSConnection(self.address, context=self.context(), timeout=WAIT_SECONDS)
        try:
            yield found
        finally:
            found.close()

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        return {**({"Authorization": f"Bearer {self.token}"} if self.token else {}), **given}

    def get(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        with self.connection() as connection:
            connection.request(
                method, path, headers=self._headers({k.replace("_", "-"): v for k, v in headers.items()})
            )
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def post(self, path: str, values: Mapping[str, str], **headers: str) -> Answer:
        own = {
            "Content-Type": "application/x-www-form-urlencoded",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        with self.connection() as connection:
            connection.request("POST", path, body=urlencode(values), headers=self._headers(own))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    @contextmanager
    def stream(self, path: str) -> Iterator[Stream]:
        with self.connection() as connection:
            connection.request("GET", path, headers=self._headers({"Accept": "text/event-stream"}))
            yield Stream(connection.getresponse())


@dataclass
class Stream:
    """Server-sent events, one after the other."""

    answer: http.client.HTTPResponse

    def pages(self) -> Iterator[str]:
        """The content of each page event, until the stream ends."""
        name, lines = "", []
        until = time.monotonic() + WAIT_SECONDS
        while line := self.answer.readline().decode():
            assert time.monotonic() < until, "the stream goes on, and nothing comes"
            match line.rstrip("\n").partition(": "):
                case ("event", _, value):
                    name = value
                case ("data", _, value) | ("data:", _, value):
                    lines.append(value)
                case ("", _, _):
                    if name == "page":
                        yield "\n".join(lines)
                    name, lines = "", []
