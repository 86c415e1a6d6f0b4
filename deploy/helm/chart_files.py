"""Writes what the charts carry that is made of other files: their README's tables and the alert rules.

    python deploy/helm/chart_files.py           writes them
    python deploy/helm/chart_files.py --check   names those that are out of date, and fails

A table has a line for each value: its path, its default, and the comment that begins with "# --" above it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

HERE: Final = Path(__file__).parent
RULES: Final = HERE.parent / "prometheus"
# Charts, and the alert rules that each carries.
CHARTS: Final = {HERE / "accord": "coordinator.rules.yml", HERE / "accord-participant": "participant.rules.yml"}
BEGIN: Final = "<!-- values: written by make chart -->"
END: Final = "<!-- end of values -->"
_KEY: Final = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z]+):")


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a chart. path: with dots; default: as JSON."""

    path: str
    default: str
    meaning: str


def comments(text: str) -> Mapping[str, str]:
    """Comments that begin with "# --", by the path of the key below them."""
    found: dict[str, str] = {}
    path: list[str] = []
    waiting = ""
    for line in text.splitlines():
        if line.strip().startswith("# --"):
            waiting = line.strip().removeprefix("# --").strip()
        elif match := _KEY.match(line):
            depth = len(match["indent"]) // 2
            path = [*path[:depth], match["key"]]
            if waiting:
                found[".".join(path)] = waiting
            waiting = ""
    return found


def leaves(values: Mapping[str, object], described: Mapping[str, str], above: str = "") -> Iterator[Value]:
    """Every value that has a default of its own; an object that is described as a whole is one of them."""
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and value and not (path in described and _is_free(path)):
            if path in described:
                yield Value(path, "", described[path])
            yield from leaves(value, described, f"{path}.")
        else:
            yield Value(path, json.dumps(value), described.get(path, ""))


def table(chart: Path) -> str:
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    rows = [
        f"| `{value.path}` | {f'`{value.default}`' if value.default else ''} | {value.meaning.replace('|', '&#124;')} |"
        for value in leaves(yaml.safe_load(text), comments(text))
    ]
    return "\n".join((BEGIN, "", "| value | default | meaning |", "|---|---|---|", *rows, "", END))


def written(chart: Path) -> Mapping[Path, str]:
    """What this module's files should say."""
    readme = chart / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    files = {readme: f"{before}{table(chart)}{after}"}
    rules = CHARTS[chart]
    files[chart / "files" / rules] = (RULES / rules).read_text(encoding="utf-8")
    return files


def main() -> int:
    outdated = [
        (path, text)
        for chart in CHARTS
        for path, text in written(chart).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for path, _ in outdated:
            print(f"{path} is out of date: make chart", file=sys.stderr)
        return 1 if outdated else 0
    for path, text in outdated:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


def _is_free(path: str) -> bool:
    """Objects whose keys are Kubernetes' own."""
    return path in ("resources",)


if __name__ == "__main__":
    sys.exit(main())
