"""What browsers are sent: vendored code as it was published, and nothing that asks anybody else for anything."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from coordinator.web.rendering import ASSETS, STATIC, asset_path

WEB = Path(str(STATIC)).parent
# idiomorph 0.8.0, dist/idiomorph.min.js of the npm package of that name.
IDIOMORPH = "4cbd535caf7663a51eda9bce6595371c384fc430d54b8d414e29a61167f19f96"


def test_the_vendored_library_is_what_was_published_and_comes_with_its_licence():
    assert hashlib.sha256((WEB / "static" / "idiomorph.min.js").read_bytes()).hexdigest() == IDIOMORPH
    assert "Zero-Clause BSD" in (WEB / "static" / "idiomorph.LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", sorted(WEB.rglob("*.html")) + sorted((WEB / "static").glob("*.*s*")), ids=lambda p: p.name
)
def test_no_file_names_another_host(path):
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
    assert not re.search(r'(https?:|["\x27(=])//[a-z0-9-]+\.[a-z]', text)
    assert "@import" not in text


@pytest.mark.parametrize("path", sorted(WEB.rglob("*.html")), ids=lambda p: p.name)
def test_no_template_switches_escaping_off_or_writes_style_or_script_in_place(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|Markup|style=|<style|\bon[a-z]+=|<script(?! defer src)", text)


def test_every_file_that_is_served_is_there_and_its_address_changes_with_its_content():
    assert {path.name for path in (WEB / "static").iterdir()} == {*ASSETS, "idiomorph.LICENSE"}
    for name in ASSETS:
        digest = hashlib.sha256((WEB / "static" / name).read_bytes()).hexdigest()
        assert asset_path(name) == f"/static/{digest[:16]}/{name}"
