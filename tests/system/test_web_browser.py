"""The web page in a real browser: it follows what happens, works by keyboard, and asks nobody else for anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from accord.v1 import admin_pb2 as pb
from tests.browser import Tab, chromium
from tests.programs import tool_file
from tests.rpc import crowd
from tests.rpc.coordinator import CONFIG, RunningCoordinator, running_coordinator
from tests.rpc.federation import Federation
from tests.rpc.showcase import LOST, RUN, SITES, WEB, showcase_in
from tests.web_pictures import IS_LIVE, PICTURES, address, come_in, take

ROUNDS = 2
OPEN_ROUND = ROUNDS + 1
PAGES = (
    "/",
    "/runs",
    f"/runs/{RUN}",
    f"/runs/{RUN}/rounds/{OPEN_ROUND}",
    f"/runs/{RUN}/adapters",
    "/participants",
    f"/participants/{LOST}",
    "/audit",
)
CROWDED_PAGES = (
    "/",
    f"/runs/{crowd.RUN}",
    f"/runs/{crowd.RUN}/rounds/61",
    "/participants",
    "/audit",
)
FOCUSED = "document.activeElement.innerText || document.activeElement.id"
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Iterator[Federation]:
    with showcase_in(tmp_path_factory.mktemp("showcase"), rounds=ROUNDS) as made:
        yield made


@pytest.fixture(scope="module")
def token(federation) -> str:
    return str(federation.admin.create_web_token("wallboard", ttl_seconds=3600)["token"])


@asynccontextmanager
async def visiting(federation: Federation, token: str, folder: Path) -> AsyncIterator[Tab]:
    """A browser that has come in by the door, at the overview."""
    async with chromium(folder / "profile") as browser, browser.tab() as tab:
        await tab.window(1280, 900)
        await come_in(tab, address(federation, "/"), token)
        yield tab


async def test_a_visit_by_keyboard_and_live_and_of_every_page(federation, token, tmp_path):
    """One browser for all of it: starting one takes longer than what is done with it."""
    async with visiting(federation, token, tmp_path) as tab:
        await _every_page_is_complete_and_accessible(federation, tab)
        await _tab_goes_the_way_of_the_eye(federation, tab)
        await _what_happens_is_seen_without_a_reload(federation, tab)
        await _a_lost_connection_is_said_and_mended(federation, tab)
        await _without_script_the_page_is_the_same(federation, tab)
        await _nothing_is_told_by_colour_alone(federation, tab)
        await _pictures_for_the_documents_can_be_taken(federation, tab, tmp_path)
        own = address(federation, "/")
        assert [url for url in tab.requests if not url.startswith((own, "about:"))] == []
        assert [text for text in tab.complaints if "ERR_" not in text] == []


async def violations(tab: Tab) -> list[str]:
    """What axe finds on the page, with the first places of each."""
    axe = tool_file("axe", "axe_playwright_python/axe.min.js").read_text(encoding="utf-8")
    # The content security policy is about what the page loads; this comes by the debugger.
    await tab.run(f"{axe};0")
    found: list[str] = await tab.run(
        f"axe.run(document, {{runOnly: {RULES}}}).then(found => found.violations.map("
        "violation => violation.id + ': ' + violation.nodes.map(node => node.html).slice(0, 3).join(' ')))"
    )
    return found


async def _every_page_is_complete_and_accessible(federation: Federation, tab: Tab) -> None:
    for number, path in enumerate(PAGES):
        # By turns, so that every rule sees both.
        scheme = ("light", "dark")[number % 2]
        await tab.prefer(prefers_color_scheme=scheme)
        await tab.go(address(federation, path))
        await tab.until(IS_LIVE)
        for width in (400, 1280):
            await tab.window(width, 900)
            assert await tab.run("document.documentElement.scrollWidth") <= width, (path, width)
        assert await violations(tab) == [], (path, scheme)
    await tab.prefer(prefers_color_scheme="light")


async def _tab_goes_the_way_of_the_eye(federation: Federation, tab: Tab) -> None:
    await tab.go(address(federation, "/runs"))
    await tab.until(IS_LIVE)
    seen = []
    for _ in range(8):
        await tab.press("Tab")
        seen.append(await tab.run(FOCUSED))
    assert [text.strip() for text in seen] == [
        *("Skip to the content", "lab", "Overview", "Runs", "Participants", "Audit log", "Pause", "all"),
    ]
    outline = await tab.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is seen"
    await tab.go(address(federation, "/runs"))
    await tab.press("Tab")
    await tab.press("Enter")
    assert await tab.run("document.activeElement.id") == "main"
    for _ in range(5):
        await tab.press("Tab")
    assert await tab.run("document.activeElement.getAttribute('role')") == "region", "a wide table can be scrolled"
    await tab.press("Tab")
    await tab.press("Enter")
    await tab.until(f'location.pathname === "/runs/{RUN}"')


async def _what_happens_is_seen_without_a_reload(federation: Federation, tab: Tab) -> None:
    await tab.go(address(federation, f"/runs/{RUN}"))
    await tab.until(IS_LIVE)
    await tab.run("window.sameDocument = true; document.querySelector('#loss-table').open = true")
    await tab.run("document.querySelector('#members ~ .choices a').focus()")
    await asyncio.to_thread(federation.admin.pause_run, f"runs/{RUN}")
    await tab.until("document.querySelector('h1').innerText.includes('paused')")
    assert await tab.run("window.sameDocument") is True
    assert await tab.run("document.querySelector('#loss-table').open") is True, "what was opened stays open"
    assert (await tab.run(FOCUSED)).startswith("all"), "the focus stays"
    await tab.run("document.querySelector('#pause').click()")
    await tab.until('document.documentElement.dataset.live === "paused"')
    await asyncio.to_thread(federation.admin.resume_run, f"runs/{RUN}")
    await tab.run("document.querySelector('#pause').click()")
    await tab.until("document.querySelector('h1').innerText.includes('running')")
    assert await tab.run("window.sameDocument") is True


async def _a_lost_connection_is_said_and_mended(federation: Federation, tab: Tab) -> None:
    await tab.call(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    await tab.run("document.querySelector('#pause').click(); document.querySelector('#pause').click()")
    await tab.until("document.querySelector('#live').innerText", lambda text: "may be out of date" in text)
    await tab.call(
        "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    await tab.until(IS_LIVE)


async def _without_script_the_page_is_the_same(federation: Federation, tab: Tab) -> None:
    path = f"/runs/{RUN}/rounds/1"
    await tab.go(address(federation, path))
    await tab.until(IS_LIVE)
    words = "document.querySelector('main').innerText.replace(/\\d+ (s|min) ago/g, '')"
    with_script = await tab.run(words)
    await tab.call("Emulation.setScriptExecutionDisabled", value=True)
    await tab.go(address(federation, path))
    assert await tab.run(words) == with_script
    assert await tab.run("document.querySelector('noscript meta').content") == "30", "it asks for itself anew"
    await tab.call("Emulation.setScriptExecutionDisabled", value=False)


async def _nothing_is_told_by_colour_alone(federation: Federation, tab: Tab) -> None:
    await tab.go(address(federation, f"/runs/{RUN}"))
    await tab.until(IS_LIVE)
    lines = await tab.run(
        "[...document.querySelectorAll('.curve g')].map(group => ["
        "getComputedStyle(group.querySelector('.line')).strokeDasharray,"
        "group.querySelector('.dot').getAttribute('d').replace(/[-0-9.]+/g, ''),"
        "getComputedStyle(group.querySelector('.dot')).fill === getComputedStyle(group).color].join(' '))"
    )
    assert len(lines) >= len(SITES)
    assert len(set(lines)) == len(lines), "told apart by dash and by the form of their marks"
    names = await tab.run("[...document.querySelectorAll('.curve .name')].map(name => name.textContent.trim())")
    assert len(names) == len(lines)
    assert all(names), "and each by its name at its end"
    states = await tab.run("[...document.querySelectorAll('.pill')].map(pill => pill.innerText.trim())")
    assert states
    assert all(any(letter.isalpha() for letter in text) for text in states), "a state is a word"


async def _pictures_for_the_documents_can_be_taken(federation: Federation, tab: Tab, folder: Path) -> None:
    await take(tab, federation, folder)
    for name, picture in PICTURES.items():
        content = (folder / name).read_bytes()
        size = tuple(int.from_bytes(content[at : at + 4]) for at in (16, 20))  # PNG, 11.2.2: the header's first two
        assert size == (picture.width, picture.height)
    await tab.go(address(federation, f"/runs/{RUN}/rounds/1"))
    assert (await tab.printed()).startswith(b"%PDF")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory) -> Iterator[RunningCoordinator]:
    with running_coordinator(tmp_path_factory.mktemp("crowd"), CONFIG + WEB) as running:
        crowd.fill(running, participants=1000)
        yield running


async def test_a_thousand_participants_fit_into_a_browser(crowded, tmp_path):
    """Every page is live, as narrow as its window, read by screen readers, and leads to the last of a thousand."""
    asked = pb.CreateWebTokenRequest(label="crowd", ttl_seconds=3600)
    token = crowded.admin().CreateWebToken(asked).token
    home = f"https://{crowded.addresses.web}"
    async with chromium(tmp_path / "profile") as browser, browser.tab() as tab:
        await come_in(tab, f"{home}/", token)
        for path in CROWDED_PAGES:
            await tab.go(home + path)
            await tab.until(IS_LIVE)
            for width in (400, 1280):
                await tab.window(width, 900)
                assert await tab.run("document.documentElement.scrollWidth") <= width, (path, width)
            assert await violations(tab) == [], path
        await tab.go(f"{home}/participants?q=hospital-0998")
        await tab.until(IS_LIVE)
        assert await tab.run("document.querySelectorAll('tbody tr').length") == 1
        assert "hospital-0998" in await tab.run("document.querySelector('tbody').innerText")
        assert [text for text in tab.complaints if "ERR_" not in text] == []
