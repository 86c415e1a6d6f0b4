"""The demo's three sites and their records: built once into a folder, the same on every machine.

By itself: a clinic (classification), a smart-home maker (named entities), a help desk (instructions), from texts inside
small public packages. Or the user's own data sets (ACCORD_DEMO_DATA). Knows nothing of the federation.

    python -m demo.domains FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from common.errors import DataInvalid
from demo.sources import folder as own_folder
from demo.sources.records import Parts, Task, in_domain, write_lines

DATA_VARIABLE: Final = "ACCORD_DEMO_DATA"
SETS_VARIABLE: Final = "ACCORD_DEMO_SETS"

_NAMES: Final = Path(__file__).parent / "data"
# Small enough for three rounds in minutes on two cores: judging costs as much as training (a generated answer is dear).
_TRAIN_RECORDS: Final = 320
_HELD_OUT_RECORDS: Final = {Task.CLASSIFICATION: 80, Task.NER: 50, Task.INSTRUCTION: 60}
_CHARACTERS: Final = {Task.CLASSIFICATION: 400, Task.NER: 360, Task.INSTRUCTION: 360}


@dataclass(frozen=True, slots=True)
class Site:
    """One organisation of the demo and its two data files.

    name: fit for an identifier. labels: of a classification, else empty. note: what was left out of a larger set.
    """

    name: str
    title: str
    domain: str
    task: Task
    source: str
    note: str
    labels: tuple[str, ...]
    train_path: Path
    held_out_path: Path
    train_records: int
    held_out_records: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one site's records come about."""

    name: str
    title: str
    source: str
    build: Callable[[], own_folder.Sample]


def choose(cache: Path, environment: Mapping[str, str]) -> tuple[Site, ...]:
    """The sites that the environment asks for: ACCORD_DEMO_DATA and ACCORD_DEMO_SETS, else the built-in ones.

    Raises DataInvalid with what to change.
    """
    data = environment.get(DATA_VARIABLE, "")
    wanted = tuple(name.strip() for name in environment.get(SETS_VARIABLE, "").split(",") if name.strip())
    if data:
        return from_folder(Path(data).expanduser(), cache=cache, wanted=wanted)
    if wanted:
        raise DataInvalid(f"{SETS_VARIABLE} names data sets, but {DATA_VARIABLE} names no folder that has them")
    return built_in(cache)


def built_in(cache: Path) -> tuple[Site, ...]:
    """Clinic, smart home and help desk, built in `cache` on first use."""
    packages = ("simple-icd-10-cm", "home-assistant-intents", "hassil", "eg")
    recipe = [*(f"{package} {version(package)}" for package in packages), str(_TRAIN_RECORDS), str(_HELD_OUT_RECORDS)]
    sources = Path(own_folder.__file__).parent
    recipe += [path.read_text(encoding="utf-8") for path in sorted([*sources.glob("*.py"), *_NAMES.glob("*.json")])]
    return _cached(cache / f"built-in-{_digest(*recipe)[:12]}", _built_in_plans)


def from_folder(data: Path, *, cache: Path, wanted: Sequence[str] = ()) -> tuple[Site, ...]:
    """Three data sets of `data`: the `wanted` ones, or the first of each task. Raises DataInvalid."""
    chosen = own_folder.choose_sets(own_folder.find_sets(data), wanted=wanted)
    files = [path for data_set in chosen for path in (data_set.train_path, data_set.held_out_path)]
    recipe = [Path(own_folder.__file__).read_text(encoding="utf-8"), str(_TRAIN_RECORDS), str(_HELD_OUT_RECORDS)]
    recipe += [str(_CHARACTERS), *(data_set.name for data_set in chosen)]
    recipe += [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return _cached(cache / f"folder-{_digest(*recipe)[:12]}", lambda: [_plan_of(data_set) for data_set in chosen])


def _built_in_plans() -> list[_Plan]:
    # The packages are large (two seconds to parse all diagnoses): only a build pays for them.
    from demo.sources import clinic, help_desk, smart_home

    def plan(name: str, title: str, source: str, task: Task, build: Callable[..., Parts]) -> _Plan:
        return _Plan(
            name=name,
            title=title,
            source=source,
            build=lambda: own_folder.Sample(build(train=_TRAIN_RECORDS, held_out=_HELD_OUT_RECORDS[task]), note=""),
        )

    return [
        plan(
            clinic.SITE,
            "clinic: part of medicine of a diagnosis",
            "ICD-10-CM (United States government work), package simple-icd-10-cm",
            Task.CLASSIFICATION,
            clinic.build,
        ),
        plan(
            smart_home.SITE,
            "smart-home maker: what a spoken request names",
            "sentence templates of package home-assistant-intents (Apache-2.0)",
            Task.NER,
            smart_home.build,
        ),
        plan(
            help_desk.SITE,
            "help desk: a shell command for a task",
            "example pages of package eg (MIT)",
            Task.INSTRUCTION,
            help_desk.build,
        ),
    ]


def _plan_of(data_set: own_folder.DataSet) -> _Plan:
    limits = own_folder.Limits(
        train=_TRAIN_RECORDS,
        held_out=_HELD_OUT_RECORDS[data_set.task],
        characters=_CHARACTERS[data_set.task],
    )
    return _Plan(
        name=re.sub(r"[^a-z0-9]+", "-", data_set.name.lower()).strip("-") or "site",
        title=f"{data_set.name}: {data_set.task.value}",
        source=str(data_set.folder),
        build=lambda: own_folder.take(data_set, limits),
    )


# --- the cache --------------------------------------------------------------------------------------------------------


def _cached(folder: Path, plans: Callable[[], Sequence[_Plan]]) -> tuple[Site, ...]:
    """Sites as they lie in `folder`; whatever is not whole is built again beside it and put in its place at once."""
    sites = _load(folder)
    if sites is not None:
        return sites
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(building, plans())
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    sites = _load(folder)
    if sites is None:
        raise DataInvalid(f"{folder} changed while it was written; is another demo using it?")
    return sites


def _write(folder: Path, plans: Sequence[_Plan]) -> None:
    samples = [(plan, plan.build()) for plan in plans]
    # Results are told apart by domain: a site has one, and no two sites have the same.
    owners = Counter(domain for _, sample in samples for domain in _domains_of(sample.parts))
    about: list[dict[str, object]] = []
    for plan, sample in samples:
        domain = min(_domains_of(sample.parts))
        is_own = len(_domains_of(sample.parts)) == 1 and owners[domain] == 1
        parts = in_domain(sample.parts, domain if is_own else plan.name)
        place = folder / plan.name
        place.mkdir()
        write_lines(place / "train.jsonl", parts.train)
        write_lines(place / "heldout.jsonl", parts.held_out)
        labels = sorted({record.output for record in parts.train if record.label is not None})
        about.append(
            {
                "name": plan.name,
                "title": plan.title,
                "domain": parts.train[0].domain,
                "task": parts.train[0].task.value,
                "source": plan.source,
                "note": sample.note,
                "labels": labels,
                "train": {"records": len(parts.train), "sha256": _file_digest(place / "train.jsonl")},
                "heldout": {"records": len(parts.held_out), "sha256": _file_digest(place / "heldout.jsonl")},
            }
        )
    (folder / "sites.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _domains_of(parts: Parts) -> set[str]:
    return {record.domain for record in (*parts.train, *parts.held_out)}


def _load(folder: Path) -> tuple[Site, ...] | None:
    """None if the folder is not there or is not what was written."""
    try:
        about = json.loads((folder / "sites.json").read_text(encoding="utf-8"))
        sites = tuple(_site(folder / fields["name"], fields) for fields in about)
    except (OSError, ValueError, KeyError):
        return None
    return sites


def _site(place: Path, fields: Mapping[str, object]) -> Site:
    """Raises ValueError if a file is not the one that was written."""
    counts: dict[str, int] = {}
    for part in ("train", "heldout"):
        match fields[part]:
            case {"records": int(count), "sha256": str(digest)} if digest == _file_digest(place / f"{part}.jsonl"):
                counts[part] = count
            case _:
                raise ValueError(f"{place / part}.jsonl has changed")
    labels = fields["labels"]
    return Site(
        name=str(fields["name"]),
        title=str(fields["title"]),
        domain=str(fields["domain"]),
        task=Task(str(fields["task"])),
        source=str(fields["source"]),
        note=str(fields["note"]),
        labels=tuple(str(label) for label in labels) if isinstance(labels, list) else (),
        train_path=place / "train.jsonl",
        held_out_path=place / "heldout.jsonl",
        train_records=counts["train"],
        held_out_records=counts["heldout"],
    )


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()


# --- by hand ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the records and print what there is of them."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.domains", description="Build the records of the demo's sites."
    )
    parser.add_argument("folder", type=Path, help="where the records go")
    parser.add_argument("--data", default=os.environ.get(DATA_VARIABLE, ""), help="a folder of your own data sets")
    parser.add_argument("--sets", default=os.environ.get(SETS_VARIABLE, ""), help="three of its data sets, as a,b,c")
    chosen = parser.parse_args(arguments)
    try:
        sites = choose(chosen.folder, {DATA_VARIABLE: chosen.data, SETS_VARIABLE: chosen.sets})
    except DataInvalid as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for site in sites:
        print(f"{site.name}  {site.title}  [{site.task.value}, domain {site.domain}]")
        print(f"  {site.train_records} training records    {site.train_path}")
        print(f"  {site.held_out_records} held-out records     {site.held_out_path}")
        print(f"  from {site.source}" + (f"; {site.note}" if site.note else ""))
        if site.labels:
            print(f"  labels: {', '.join(site.labels)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
