"""Who the participants of an experiment are: organisations that differ by domain, each with records of its own.

From a folder of public sets (one sub-folder each with train, validation and test.jsonl), or from the packages that the
demo takes its records from. A shard is chosen by digests of the text: every machine and every run has the same.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from common.errors import DataInvalid
from demo.sources import folder as sets
from demo.sources.records import Parts, Record, Task, shuffled, without_repeats, write_lines
from experiments.presets import Preset, Records

TRAIN: Final = "train.jsonl"
VALIDATION: Final = "validation.jsonl"
TEST: Final = "test.jsonl"
_PARTS: Final = (TRAIN, VALIDATION, TEST)
# Of fewer sites a domain's sums stay closed.
LEAST_SITES: Final = 3
LEAST_RECORDS: Final = 4


@dataclass(frozen=True, slots=True)
class Site:
    """One participant. train, validation, test: files of records of its own; nobody else has any of them."""

    name: str
    domain: str
    task: Task
    source: str
    folder: Path
    train_records: int

    @property
    def train(self) -> Path:
        return self.folder / TRAIN

    @property
    def validation(self) -> Path:
        return self.folder / VALIDATION

    @property
    def test(self) -> Path:
        return self.folder / TEST


@dataclass(frozen=True, slots=True)
class _Share:
    """One site's share of a data set: shard `index` of `of`, of records whose own domain is `only` (all if empty)."""

    name: str
    data_set: str
    only: str = ""
    index: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True)
class _Domain:
    name: str
    shares: tuple[_Share, ...]


# Intents of disjoint label sets, diseases and chemicals in abstracts, general instructions, patients' questions.
_PUBLIC: Final = (
    _Domain(
        "assistant",
        tuple(
            _Share(f"assistant-{short}", "clinc150", only=only)
            for short, only in (("bank", "banking"), ("travel", "travel"), ("kitchen", "kitchen_and_dining"))
        ),
    ),
    _Domain(
        "biomedical",
        (
            _Share("biomedical-north", "ncbi_disease", index=0, of=2),
            _Share("biomedical-south", "ncbi_disease", index=1, of=2),
            _Share("biomedical-drugs", "bc5cdr"),
        ),
    ),
    _Domain("general", tuple(_Share(f"general-{index + 1}", "dolly", index=index, of=3) for index in range(3))),
    _Domain("medical", tuple(_Share(f"medical-{index + 1}", "medquad", index=index, of=3) for index in range(3))),
)


def make_sites(preset: Preset, place: Path, *, data: Path | None) -> tuple[Site, ...]:
    """Write every site's records below `place` and return the sites. data: folder of public sets, None for packages.

    Raises DataInvalid with what is missing.
    """
    drawn = _from_folder(preset, data) if data is not None else _from_packages(preset)
    sites: list[Site] = []
    for share, domain, parts in drawn:
        folder = place / share.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in zip(_PARTS, parts, strict=True):
            write_lines(folder / name, records)
        task = parts[0][0].task
        sites.append(Site(share.name, domain, task, share.data_set, folder, len(parts[0])))
    return tuple(sites)


def domains_of(sites: Sequence[Site]) -> dict[str, tuple[Site, ...]]:
    """Sites by domain, in the order of the sites."""
    return {
        name: tuple(site for site in sites if site.domain == name) for name in dict.fromkeys(s.domain for s in sites)
    }


def rare_domain_of(sites: Sequence[Site]) -> str:
    """The domain that `with_rare` is to cut down: the last one whose sums may be opened."""
    return [name for name, members in domains_of(sites).items() if len(members) >= LEAST_SITES][-1]


def with_rare(sites: Sequence[Site], domain: str, *, share: float, place: Path) -> tuple[Site, ...]:
    """The sites, with `domain` cut down to about `share` of all training records, but no site below `LEAST_RECORDS`.

    Its sites are written below `place`; what they validate and are tested on stays whole. The others are the same.
    """
    others = sum(site.train_records for site in sites if site.domain != domain)
    most = max(LEAST_RECORDS, round(others * share / (1.0 - share) / len(domains_of(sites)[domain])))
    return tuple(_cut(site, place / site.name, most) if site.domain == domain else site for site in sites)


def _cut(site: Site, folder: Path, most: int) -> Site:
    """A site's copy that trains on the first `most` records: their order is that of a digest, so any are as good."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in (VALIDATION, TEST):
        shutil.copyfile(site.folder / part, folder / part)
    lines = site.train.read_bytes().splitlines(keepends=True)[:most]
    (folder / TRAIN).write_bytes(b"".join(lines))
    return replace(site, folder=folder, train_records=len(lines))


_Drawn = Iterator[tuple[_Share, str, tuple[Sequence[Record], Sequence[Record], Sequence[Record]]]]


def _from_folder(preset: Preset, data: Path) -> _Drawn:
    counts = preset.records
    for domain, most in zip(_PUBLIC, preset.sites, strict=False):
        for share in domain.shares[:most]:
            parts = tuple(
                _of_share(sets.read(_file(data, share.data_set, name)), share, domain.name, counts, count, name)
                for name, count in zip(_PARTS, (counts.train, counts.validation, counts.test), strict=True)
            )
            train, validation, test = parts
            asked = {(record.instruction, record.input_text) for record in (*validation, *test)}
            unseen = [record for record in train if (record.instruction, record.input_text) not in asked]
            yield share, domain.name, (unseen, validation, test)


def _file(data: Path, data_set: str, name: str) -> Path:
    path = data / data_set / name
    if not path.is_file():
        needed = sorted({share.data_set for domain in _PUBLIC for share in domain.shares})
        raise DataInvalid(
            f"{path} is missing; the data folder needs {', '.join(needed)}, each with {', '.join(_PARTS)}"
        )
    return path


def _of_share(
    records: Iterator[Record], share: _Share, domain: str, limits: Records, count: int, part: str
) -> list[Record]:
    """At most `count` records of a share, short enough, labels and empty answers in fair parts."""
    own = [record for record in without_repeats(records) if not share.only or record.domain == share.only]
    shard = [record for record in own if _shard_of(record, share.of) == share.index]
    bounds = sets.Limits(train=count, held_out=count, characters=limits.characters, none_share=limits.none_share)
    labels = frozenset(record.label for record in shard if record.label is not None)
    chosen = sets.bounded(shard, labels=labels, limits=bounds, count=count)
    if not chosen:
        raise DataInvalid(
            f"{share.data_set}/{part} has no record for {share.name} of at most {limits.characters} characters"
        )
    return _in(domain, chosen)


def _in(domain: str, records: Sequence[Record]) -> list[Record]:
    return [replace(record, domain=domain) for record in records]


def _shard_of(record: Record, count: int) -> int:
    text = f"{record.instruction}\x1f{record.input_text}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") % count


def _from_packages(preset: Preset) -> _Drawn:
    """Three domains out of small public packages: enough to see the whole work, too little for the claims."""
    from demo.sources import clinic, help_desk, smart_home

    counts = preset.records
    sources: tuple[tuple[str, Callable[..., Parts]], ...] = (
        ("clinic", clinic.build),
        ("smart_home", smart_home.build),
        ("help_desk", help_desk.build),
    )
    for (domain, build), most in zip(sources, preset.sites, strict=False):
        held_out = counts.validation + counts.test
        parts = _most_of(build, train=most * counts.train, held_out=most * held_out)
        train, judged = shuffled(parts.train, salt=domain), shuffled(parts.held_out, salt=domain)
        for index in range(most):
            own = judged[index::most]
            cut = len(own) * counts.validation // held_out
            share = _Share(f"{domain.replace('_', '-')}-{index + 1}", domain)
            yield share, domain, (_in(domain, train[index::most]), _in(domain, own[:cut]), _in(domain, own[cut:]))


def _most_of(build: Callable[..., Parts], *, train: int, held_out: int) -> Parts:
    """What a package gives of what is asked for: a small one has fewer records than a large preset wants."""
    while True:
        try:
            return build(train=train, held_out=held_out)
        except DataInvalid:
            if train < 8 or held_out < 4:
                raise
            train, held_out = train * 3 // 4, max(2, held_out * 3 // 4)
