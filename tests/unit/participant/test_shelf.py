"""Adapters at a site: nothing is there that does not verify, and a download goes on where it broke off."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.adapters import ADAPTER_FILE, MANIFEST_FILE
from common.errors import DigestMismatch, InvalidArgument, SignatureInvalid, TooLarge, Unavailable
from common.manifest import SIGNATURE_FILE, Manifest, signed_bytes
from common.methods import Method
from common.plan import Plan
from common.sent import sent_vector
from participant.client import PublishedAdapter
from participant.shelf import KEPT_ADAPTERS, KEPT_FINALS, AdapterShelf
from tests.unit.rounds import made

KEY = Ed25519PrivateKey.generate()
PLAN = made.plan(coordinator_public_key=KEY.public_key().public_bytes_raw().hex())
CHUNK = 64


def model_file(seed: int = 0) -> bytes:
    layout = PLAN.layout()
    values = np.random.default_rng(seed).standard_normal(layout.parameters).astype("<f4")
    return layout.header() + values.tobytes()


def manifest(plan: Plan, digest: str, *, parent: str | None = None) -> Manifest:
    return Manifest(
        federation=plan.federation,
        run=plan.run,
        round=1,
        digest=digest,
        parent=parent,
        base_model=plan.base_model.name,
        base_model_digest=plan.base_model.digest,
        plan_digest="aa" * 32,
        charter_digest=plan.charter_digest,
        adapter=plan.adapter,
        method=plan.method.name,
        server_optimizer=plan.method.server_optimizer,
        instruction_set_digest="bb" * 32,
        survivor_count=3,
        survivors=None,
        metrics={},
        privacy=None,
        created_at="2026-03-01T12:00:00Z",
    )


@dataclass
class Coordinator:
    """Publishes one adapter; what it says and sends can be doctored."""

    content: bytes = field(default_factory=model_file)
    key: Ed25519PrivateKey = KEY
    sends: bytes | None = None
    breaks_after: int | None = None
    size_bytes: int | None = None
    plan: Plan = PLAN
    parent: str | None = None
    spoils_moved: bool = False
    offsets: list[int] = field(default_factory=list)
    moved_offsets: list[int] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def adapter(self, digest: str) -> PublishedAdapter:
        content = manifest(self.plan, digest, parent=self.parent).to_bytes()
        size = len(self.content) if self.size_bytes is None else self.size_bytes
        return PublishedAdapter(digest, size, content, self.key.sign(signed_bytes(content)), "{}")

    def adapter_chunks(self, digest: str, *, offset: int, moved_only: bool = False) -> Iterator[bytes]:
        (self.moved_offsets if moved_only else self.offsets).append(offset)
        sends = self.content if self.sends is None else self.sends
        if moved_only:
            data = sends[len(PLAN.layout().header()) :]
            parts = sent_vector(self.plan, 1).stretches.parts
            sends = b"".join(data[4 * part.stored : 4 * (part.stored + part.size)] for part in parts)
            sends = bytes([sends[0] ^ 1]) + sends[1:] if self.spoils_moved else sends
        for at in range(offset, len(sends), CHUNK):
            if self.breaks_after is not None and at - offset >= self.breaks_after:
                raise Unavailable("the network is gone")
            yield sends[at : at + CHUNK]


def shelf(folder: Path, coordinator: Coordinator) -> AdapterShelf:
    return AdapterShelf(folder, lambda: coordinator)  # type: ignore[arg-type, return-value]


def test_a_fetched_adapter_is_a_peft_folder_with_its_manifest(tmp_path: Path):
    coordinator = Coordinator()
    counted: list[int] = []
    folder = shelf(tmp_path, coordinator).fetch(coordinator.digest, PLAN, on_bytes=counted.append)

    assert (folder / ADAPTER_FILE).read_bytes() == coordinator.content
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == PLAN.adapter.rank
    assert json.loads((folder / MANIFEST_FILE).read_bytes())["digest"] == coordinator.digest
    assert len(bytes.fromhex((folder / SIGNATURE_FILE).read_text())) == 64
    assert sum(counted) == len(coordinator.content)


def test_what_is_there_is_not_fetched_again(tmp_path: Path):
    coordinator = Coordinator()
    kept = shelf(tmp_path, coordinator)
    assert kept.fetch(coordinator.digest, PLAN) == kept.fetch(coordinator.digest, PLAN)
    assert coordinator.offsets == [0]


def test_a_broken_download_goes_on_where_it_was_also_after_a_restart(tmp_path: Path):
    coordinator = Coordinator(breaks_after=2 * CHUNK)
    with pytest.raises(Unavailable):
        shelf(tmp_path, coordinator).fetch(coordinator.digest, PLAN)
    assert not shelf(tmp_path, coordinator).path(coordinator.digest).exists()

    coordinator.breaks_after = None
    folder = shelf(tmp_path, coordinator).fetch(coordinator.digest, PLAN)

    assert coordinator.offsets == [0, 2 * CHUNK]
    assert (folder / ADAPTER_FILE).read_bytes() == coordinator.content


def test_tampered_bytes_are_refused_and_thrown_away(tmp_path: Path):
    coordinator = Coordinator()
    coordinator.sends = coordinator.content[:-1] + bytes([coordinator.content[-1] ^ 1])
    kept = shelf(tmp_path, coordinator)

    with pytest.raises(DigestMismatch):
        kept.fetch(coordinator.digest, PLAN)

    assert not kept.path(coordinator.digest).exists()
    coordinator.sends = None
    assert (kept.fetch(coordinator.digest, PLAN) / ADAPTER_FILE).read_bytes() == coordinator.content
    assert coordinator.offsets == [0, 0]


def test_a_spoilt_beginning_of_an_earlier_try_is_thrown_away_and_fetched_anew(tmp_path: Path):
    coordinator = Coordinator(breaks_after=2 * CHUNK)
    kept = shelf(tmp_path, coordinator)
    with pytest.raises(Unavailable):
        kept.fetch(coordinator.digest, PLAN)
    (part,) = tmp_path.glob(f".{coordinator.digest}.part/{ADAPTER_FILE}")
    part.write_bytes(bytes(part.stat().st_size))  # as a power cut leaves a file

    coordinator.breaks_after = None
    folder = kept.fetch(coordinator.digest, PLAN)

    assert (folder / ADAPTER_FILE).read_bytes() == coordinator.content
    assert coordinator.offsets == [0, 2 * CHUNK, 0]


def test_an_endless_download_is_cut_off(tmp_path: Path):
    coordinator = Coordinator()
    coordinator.sends = coordinator.content + bytes(1000 * CHUNK)
    taken: list[int] = []

    with pytest.raises(DigestMismatch):
        shelf(tmp_path, coordinator).fetch(coordinator.digest, PLAN, on_bytes=taken.append)

    assert sum(taken) <= len(coordinator.content) + CHUNK


def test_another_size_than_the_plans_layout_has_is_refused_before_a_byte_is_fetched(tmp_path: Path):
    coordinator = Coordinator(size_bytes=10**12)
    with pytest.raises(TooLarge, match="1000000000000 bytes"):
        shelf(tmp_path, coordinator).fetch(coordinator.digest, PLAN)
    assert coordinator.offsets == []


def test_a_manifest_that_another_key_has_signed_is_refused(tmp_path: Path):
    coordinator = Coordinator(key=Ed25519PrivateKey.generate())
    with pytest.raises(SignatureInvalid, match="do not use this adapter"):
        shelf(tmp_path, coordinator).fetch(coordinator.digest, PLAN)
    assert coordinator.offsets == []


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAN, run="another"),
        replace(PLAN, base_model=replace(PLAN.base_model, digest="99" * 32)),
    ],
    ids=["another run", "another base model"],
)
def test_a_well_signed_adapter_of_something_else_is_refused(tmp_path: Path, other: Plan):
    coordinator = Coordinator(plan=other)
    with pytest.raises(DigestMismatch, match="not of run run"):
        shelf(tmp_path, coordinator).fetch(coordinator.digest, PLAN)


def broken_download(folder: Path, seed: int, *, at: float) -> Path:
    """What is left of a download that broke off at a time, in seconds."""
    coordinator = Coordinator(content=model_file(seed), breaks_after=2 * CHUNK)
    with pytest.raises(Unavailable):
        shelf(folder, coordinator).fetch(coordinator.digest, PLAN)
    part = folder / f".{coordinator.digest}.part"
    # The folder itself is as old as its first byte; the file in it is what tells.
    os.utime(part, (0, 0))
    os.utime(part / ADAPTER_FILE, (at, at))
    return part


def arrived(folder: Path, *, at: float) -> Path:
    coordinator = Coordinator()
    whole = shelf(folder, coordinator).fetch(coordinator.digest, PLAN)
    os.utime(whole, (at, at))
    return whole


def test_a_download_that_nobody_goes_on_with_is_deleted_once_another_adapter_has_arrived(tmp_path: Path):
    part = broken_download(tmp_path, 1, at=1000)
    kept = shelf(tmp_path, Coordinator())

    kept.prune(frozenset())
    assert part.exists()

    whole = arrived(tmp_path, at=2000)
    kept.prune(frozenset())

    assert list(tmp_path.iterdir()) == [whole]


def test_a_download_that_may_go_on_is_kept(tmp_path: Path):
    of_an_open_round = broken_download(tmp_path, 1, at=1000)
    whole = arrived(tmp_path, at=2000)
    just_broken_off = broken_download(tmp_path, 2, at=3000)

    shelf(tmp_path, Coordinator()).prune(frozenset({of_an_open_round.name.split(".")[1]}))

    assert set(tmp_path.iterdir()) == {whole, of_an_open_round, just_broken_off}


def test_only_the_newest_and_the_named_adapters_are_kept(tmp_path: Path):
    kept = shelf(tmp_path, Coordinator())
    for age in range(KEPT_ADAPTERS + 3):
        folder = kept.path(f"{age:02x}" * 32)
        folder.mkdir(parents=True)
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    oldest = f"{KEPT_ADAPTERS + 2:02x}" * 32

    kept.prune(frozenset({oldest}))

    assert {path.name for path in tmp_path.iterdir()} == {f"{age:02x}" * 32 for age in range(KEPT_ADAPTERS)} | {oldest}


def test_what_the_last_runs_ended_with_is_kept_whatever_comes_after(tmp_path: Path):
    kept = shelf(tmp_path, Coordinator())
    finals = [f"{number:02x}" * 32 for number in range(KEPT_FINALS + 2)]
    for age, digest in enumerate(finals):
        kept.path(digest).mkdir(parents=True)
        kept.keep_final(digest)
        os.utime(tmp_path / f".{digest}.final", (1000 + age, 1000 + age))
        os.utime(kept.path(digest), (1000, 1000))
    newer = [f"{0x40 + number:02x}" * 32 for number in range(KEPT_ADAPTERS)]
    for digest in newer:
        kept.path(digest).mkdir()
    kept.prune(frozenset())
    assert {path.name for path in tmp_path.glob("[!.]*")} == {*finals[2:], *newer}
    assert len(list(tmp_path.glob(".*.final"))) == KEPT_FINALS


@pytest.mark.parametrize("name", ["../outside", "/etc", "AA" * 32, "aa" * 31, ""])
def test_a_name_that_is_no_digest_leads_nowhere(tmp_path: Path, name: str):
    folder, outside = tmp_path / "adapters", tmp_path / "outside"
    outside.mkdir()
    os.utime(outside, (1000, 1000))
    coordinator = Coordinator()
    with pytest.raises(InvalidArgument, match="is not a digest"):
        shelf(folder, coordinator).fetch(name, PLAN)
    with pytest.raises(InvalidArgument, match="is not a digest"):
        shelf(folder, coordinator).path(name)
    assert (coordinator.offsets, outside.stat().st_mtime, list(tmp_path.iterdir())) == ([], 1000, [outside])


def test_an_adapter_whose_signed_parent_is_a_path_is_refused(tmp_path: Path):
    coordinator = Coordinator(plan=ROLORA, parent="../outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / ADAPTER_FILE).write_bytes(model_file(1))
    with pytest.raises(InvalidArgument, match="is not a digest"):
        shelf(tmp_path / "adapters", coordinator).fetch(coordinator.digest, ROLORA)
    assert coordinator.moved_offsets == []


# --- what has moved ------------------------------------------------------------------------------------------------

ROLORA = replace(PLAN, method=Method(name="rolora"))


def next_to(parent: bytes) -> bytes:
    """The parent's file after round 1, in which B moves."""
    layout = ROLORA.layout()
    values = np.frombuffer(parent, dtype="<f4", offset=len(layout.header())).copy()
    for slot in sent_vector(ROLORA, 1).tensors:
        values[slot.offset : slot.offset + slot.size] += 1
    return layout.header() + values.tobytes()


def with_parent(folder: Path, **settings: Any) -> tuple[AdapterShelf, Coordinator]:
    """A shelf that holds the parent of what the coordinator has now."""
    first = Coordinator(plan=ROLORA)
    shelf(folder, first).fetch(first.digest, ROLORA)
    after = Coordinator(content=next_to(first.content), plan=ROLORA, parent=first.digest, **settings)
    return shelf(folder, after), after


def test_where_the_parent_is_there_only_what_has_moved_is_fetched(tmp_path: Path):
    kept, coordinator = with_parent(tmp_path)
    counted: list[int] = []
    folder = kept.fetch(coordinator.digest, ROLORA, on_bytes=counted.append)

    assert (folder / ADAPTER_FILE).read_bytes() == coordinator.content
    assert sum(counted) == 4 * sent_vector(ROLORA, 1).parameters < len(coordinator.content)
    assert (coordinator.offsets, coordinator.moved_offsets) == ([], [0])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in kept.path(coordinator.parent or "").iterdir()
    )


def test_a_broken_download_of_what_has_moved_goes_on_at_a_whole_element(tmp_path: Path):
    kept, coordinator = with_parent(tmp_path, breaks_after=0)
    with pytest.raises(Unavailable):
        kept.fetch(coordinator.digest, ROLORA)
    (part,) = tmp_path.glob(".*.part/moved.f32")
    first = sent_vector(ROLORA, 1).stretches.parts[0]
    at = len(ROLORA.layout().header()) + 4 * first.stored
    part.write_bytes(coordinator.content[at : at + 11])  # what a power cut may leave behind
    coordinator.breaks_after = None

    folder = kept.fetch(coordinator.digest, ROLORA)

    assert coordinator.moved_offsets == [0, 8]
    assert (folder / ADAPTER_FILE).read_bytes() == coordinator.content


@pytest.mark.parametrize("spoilt", ["what is sent", "the parent", "the parent's length"])
def test_what_does_not_fit_together_is_fetched_as_a_whole(tmp_path: Path, spoilt: str):
    kept, coordinator = with_parent(tmp_path, spoils_moved=spoilt == "what is sent")
    parent = kept.path(coordinator.parent or "") / ADAPTER_FILE
    if spoilt != "what is sent":
        content = parent.read_bytes()
        frozen, _ = next(sent_vector(ROLORA, 1).stretches.gaps(ROLORA.layout().parameters))
        at = len(ROLORA.layout().header()) + 4 * frozen
        changed = content[:at] + b"\0\0\0\x40" + content[at + 4 :]
        parent.write_bytes(content[:-4] if spoilt == "the parent's length" else changed)

    folder = kept.fetch(coordinator.digest, ROLORA)

    assert (folder / ADAPTER_FILE).read_bytes() == coordinator.content
    assert (coordinator.moved_offsets, coordinator.offsets) == ([0], [0])
