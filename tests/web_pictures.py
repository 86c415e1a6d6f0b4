"""Pictures of the web page, of a federation with something to see: `make pictures` writes those of the documents.

test_web_browser.py takes the same ones, so that they can always be taken.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.browser import Tab, chromium
from tests.rpc.federation import Federation
from tests.rpc.showcase import RUN, showcase_in

ROUNDS: Final = 6
IS_LIVE: Final = 'document.documentElement.dataset.live === "live"'


@dataclass(frozen=True)
class Picture:
    """One page as it stands in a window."""

    path: str
    height: int = 900
    scheme: str = "light"
    width: int = 1280


# By the names that the documents show them under.
PICTURES: Final = {
    "web-overview.png": Picture("/"),
    "web-round.png": Picture(f"/runs/{RUN}/rounds/3"),
    "web-run-dark.png": Picture(f"/runs/{RUN}", height=1000, scheme="dark"),
}


def address(federation: Federation, path: str) -> str:
    assert federation.addresses is not None
    return f"https://{federation.addresses.web}{path}"


async def come_in(tab: Tab, door: str, token: str) -> None:
    """By the door, whose field has the focus, to the page that was asked for."""
    await tab.go(door)
    assert (await tab.run("document.title")).startswith("Sign in")
    await tab.type(token)
    await tab.press("Enter")
    await tab.until(IS_LIVE)


async def take(tab: Tab, federation: Federation, folder: Path) -> None:
    """Take every picture, in a tab that has come in."""
    for name, picture in PICTURES.items():
        await tab.window(picture.width, picture.height)
        await tab.prefer(prefers_color_scheme=picture.scheme)
        await tab.go(address(federation, picture.path))
        await tab.until(IS_LIVE)
        await tab.picture(folder / name)
    await tab.prefer(prefers_color_scheme="light")


async def _write(federation: Federation, token: str, folder: Path, profile: Path) -> None:
    async with chromium(profile) as browser, browser.tab() as tab:
        await come_in(tab, address(federation, "/"), token)
        await take(tab, federation, folder)


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        state = Path(work) / "state"
        state.mkdir()
        with showcase_in(state, rounds=ROUNDS, with_ended_run=True) as federation:
            token = str(federation.admin.create_web_token("pictures", ttl_seconds=3600)["token"])
            asyncio.run(_write(federation, token, folder, Path(work) / "profile"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
