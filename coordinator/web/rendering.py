"""Templates: a page as a whole, or its changing part alone. Whatever comes from outside is escaped by the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.version import software_version
from coordinator.web import words
from coordinator.web.page import Page
from coordinator.web.views.audit import link_of
from coordinator.web.views.runs import loss_of, took

STATIC: Final = files("coordinator.web") / "static"
# Served as they lie, by their names; nothing else of the folder is.
ASSETS: Final[Mapping[str, str]] = {
    "page.css": "text/css; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "idiomorph.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around a page: whose federation it is, and who looks. may_leave: came in by a token."""

    federation: str
    visitor: str
    may_leave: bool


class Templates:
    """Renders pages. Knows nothing of what they are about."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=PackageLoader("coordinator.web", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "ago": words.ago,
            "bare": words.bare,
            "figure": words.figure,
            "lasting": words.length,
            "link_of": link_of,
            "loss_of": loss_of,
            "moment": words.moment,
            "pretty": words.pretty,
            "short": words.short,
            "sign": words.sign,
            "size": words.size,
            "spoken": words.spoken,
            "stamp": words.stamp,
            "took": took,
            "subject": words.subject,
            "tone": words.tone,
            "why": lambda row: words.why(row["reason"], row["message"]),
        }
        self._environment.globals |= {"asset": asset_path, "version": software_version()}

    def whole(self, page: Page, frame: Frame, *, path: str, now: datetime) -> str:
        """A document."""
        template = self._environment.get_template("base.html")
        return template.render(**page.values, page=page, frame=frame, path=path, now=now)

    def part(self, page: Page, *, path: str, now: datetime) -> str:
        """What lies in its <main>: all of it that changes."""
        template = self._environment.get_template(page.template)
        return template.render(**page.values, page=page, path=path, now=now)

    def bare(self, template: str, **values: object) -> str:
        """A document without a federation in it: the door, and errors."""
        return self._environment.get_template(template).render(**values)


@cache
def asset(name: str) -> bytes:
    return (STATIC / name).read_bytes()


@cache
def asset_path(name: str) -> str:
    """Where a browser finds it; another content has another address, so that it may be kept for good."""
    return f"/static/{hashlib.sha256(asset(name)).hexdigest()[:16]}/{name}"
