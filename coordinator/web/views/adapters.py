"""The adapters that a run has published, and one of them with its manifest."""

from __future__ import annotations

import json
from typing import Final

from common.errors import NotFound
from common.identifiers import parse_digest, run_name
from coordinator.web.page import ROWS_OF_A_PAGE, Ask, Page
from coordinator.web.reads import Plain

PAGE: Final = 500
# Names in a manifest (survivors, where the plan says so) are in the export; here a manifest has an end.
MOST_MANIFEST: Final = 40_000


async def adapters(ask: Ask, run: str) -> Page:
    row = await ask.reads.run(ask.caller, run_name(run))
    answer = await ask.reads.adapters(ask.caller, run_name(run), size=ROWS_OF_A_PAGE, token=ask.token())
    token = answer["next_page_token"]
    return Page(
        "adapters.html",
        f"Adapters of {run}",
        "runs",
        {
            "run": row,
            "adapters": answer["adapters"],
            "older": ask.link(**{"from": token}) if token else "",
            "newest": ask.link(**{"from": ""}) if ask.token() else "",
        },
    )


async def adapter(ask: Ask, run: str, digest: str) -> Page:
    row = await _find(ask, run, parse_digest(digest, field="adapter"))
    manifest = json.loads(row["manifest_json"]) if row["manifest_json"] else {}
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    return Page(
        "adapter.html",
        f"Adapter {digest[:12]} of {run}",
        "runs",
        {
            "run": run,
            "adapter": row,
            "digest": digest,
            "manifest": manifest,
            "manifest_text": text[:MOST_MANIFEST],
            "is_cut": len(text) > MOST_MANIFEST,
        },
    )


async def _find(ask: Ask, run: str, digest: str) -> Plain:
    """The adapter of a run by its digest. Raises NotFound."""
    token = ""
    while True:
        answer = await ask.reads.adapters(ask.caller, run_name(run), size=PAGE, token=token)
        for row in answer["adapters"]:
            if row["name"] == f"adapters/{digest}":
                found: Plain = row
                return found
        token = answer["next_page_token"]
        if not token:
            raise NotFound(f"runs/{run} has no adapter {digest}")
