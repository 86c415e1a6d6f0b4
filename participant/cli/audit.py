"""`accord-participant audit`: recompute a part of a finished round's sum, and say what that shows and what not."""

from __future__ import annotations

import argparse
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.adapters import ADAPTER_FILE, MANIFEST_FILE, check_file_digest
from common.cli.output import print_json, print_text
from common.errors import InvalidArgument, NotFound, StorageFailed
from common.manifest import SIGNATURE_FILE, verify_manifest
from common.plan import Plan
from common.secagg import chance_to_catch
from common.version import software_version
from participant.auditing import AuditReport, RoundNotes, audit_round, notes_of
from participant.cli.exits import Exit
from participant.client import CoordinatorClient
from participant.config import ParticipantConfig, load_unpinned_config
from participant.journal import Journal
from participant.network.dialling import dial
from participant.shelf import AdapterShelf

# Of the chunks, for the one figure that says how much a passed audit is worth.
_WRONG_SHARE: Final = 0.1


def execute(options: argparse.Namespace) -> Exit:
    """Print what was found right. Raises AuditFailed, with which the command ends, if anything is wrong."""
    if options.chunk is None and options.chunks < 1:
        raise InvalidArgument("--chunks takes a number from 1 on")
    config = load_unpinned_config(options.config)
    identity = config.identity.load()
    notes = _notes(config, options, identity.participant)
    try:
        with (
            dial(identity, config.coordinator.line(identity.coordinator_address)) as channel,
            tempfile.TemporaryDirectory(dir=config.state_directory, prefix=".audit-") as scratch,
        ):
            client = CoordinatorClient(channel, channel, software_version=software_version())
            adapters = _Adapters(config.adapters_directory, Path(scratch), client, notes.plan)
            report = audit_round(notes, client, choose=lambda count: _choose(options, count), fetch=adapters.folder)
    except OSError as error:
        raise StorageFailed(f"cannot read or keep an adapter in {config.state_directory}: {error}") from error
    if options.json:
        print_json(_json(report))
    else:
        print_text(_text(report))
    return Exit.OK


def _notes(config: ParticipantConfig, options: argparse.Namespace, participant: str) -> RoundNotes:
    # Opening a journal makes one, and looking must not.
    if not config.journal_file.exists():
        raise NotFound(f"this site has taken part in no round: there is no {config.journal_file}")
    journal = Journal(config.journal_file)
    try:
        run = options.run or next((entry.run for entry in journal.runs()), None)
        if run is None:
            raise NotFound("this site has taken part in no run so far")
        return notes_of(journal, run=run, round_=options.round, participant=participant)
    finally:
        journal.close()


def _choose(options: argparse.Namespace, count: int) -> Sequence[int]:
    if options.chunk is None:
        return secrets.SystemRandom().sample(range(count), min(options.chunks, count))
    outside = [chunk for chunk in options.chunk if not 0 <= chunk < count]
    if outside:
        last = f"the last one is {count - 1}" if count else "a round of evaluation has none, leave --chunk away"
        raise InvalidArgument(f"there is no chunk {outside[0]}: {last}")
    chosen: list[int] = options.chunk
    return chosen


class _Adapters:
    """Adapters from the daemon's shelf, verified again, or fetched beside it: two must not write one download."""

    def __init__(self, shelf: Path, scratch: Path, client: CoordinatorClient, plan: Plan) -> None:
        self._shelf = shelf
        self._own = AdapterShelf(scratch, lambda: client)
        self._plan = plan

    def folder(self, digest: str) -> Path:
        """The PEFT folder of an adapter, of which signature and digest are right."""
        folder = self._shelf / digest
        if not folder.exists():
            return self._own.fetch(digest, self._plan)
        verify_manifest(
            (folder / MANIFEST_FILE).read_bytes(),
            bytes.fromhex((folder / SIGNATURE_FILE).read_text()),
            public_key=self._plan.coordinator_public_key,
            digest=digest,
        )
        check_file_digest(folder / ADAPTER_FILE, digest)
        return folder


# --- output --------------------------------------------------------------------------------------------------------


def _json(report: AuditReport) -> dict[str, object]:
    return {
        "run": report.run,
        "round": report.round,
        "is_right": True,
        "survivors": list(report.survivors),
        "dropped": list(report.dropped),
        "own_update_is_in_sum": report.is_own_in_sum,
        "chunks": list(report.chunks),
        "chunk_count": report.lane_chunks,
        "parameters": report.parameters,
        "parameter_count": report.all_parameters,
        "weight": report.weight,
        "metrics": dict(report.metrics),
        "base_adapter_digest": report.base,
        "adapter_digest": report.adapter,
        "adapter_was_recomputed": bool(report.adapter) and not report.not_recomputed,
        "chance_to_catch_a_tenth_wrong": _chance(report),
    }


def _chance(report: AuditReport) -> float | None:
    if not report.lane_chunks:
        return None
    wrong = max(1, round(_WRONG_SHARE * report.lane_chunks))
    return chance_to_catch(wrong=wrong, chunks=report.lane_chunks, audited=len(report.chunks))


def _text(report: AuditReport) -> str:
    survivors = ", ".join(report.survivors)
    lines = [
        f"round {report.round} of run {report.run}: what was audited is right",
        "",
        f"receipts     {len(report.survivors)}, each signed for this round, plan, cohort and model: {survivors}",
        f"own update   {'is in the sum, as this site sent it' if report.is_own_in_sum else 'is not in the sum'}",
        f"opened keys  {len(report.survivors)} of self masks, each the one that its owner had committed to",
    ]
    if report.dropped:
        lines.append(
            f"dropped      {', '.join(report.dropped)}: the survivors have signed that, and the pair keys that were "
            "opened for it are the ones that both ends had committed to"
        )
    lines.append(
        f"tail chunk   {len(report.survivors)} updates of total weight {report.weight:.6g}; "
        f"{len(report.metrics)} figures, equal to those that were told"
    )
    if report.not_recomputed:
        lines.append(
            f"chunks       {', '.join(map(str, report.chunks))} of {report.lane_chunks}: opened. Not recomputed: "
            f"{report.not_recomputed}"
        )
    elif report.adapter:
        lines.append(
            f"chunks       {', '.join(map(str, report.chunks))} of {report.lane_chunks}: {report.parameters:,} of "
            f"{report.all_parameters:,} parameters of adapter {report.adapter[:16]} are, bit for bit, "
            f"adapter {report.base[:16]} moved by the members' mean"
        )
    return "\n".join([*lines, "", _meaning(report)])


def _meaning(report: AuditReport) -> str:
    chance = _chance(report)
    shows = "The coordinator has told the figures of this round as its members' sum gives them."
    if chance is not None and not report.not_recomputed:
        wrong = max(1, round(_WRONG_SHARE * report.lane_chunks))
        shows = (
            "The coordinator has made this part of the adapter from the sum of what these members signed, and from "
            f"nothing else. Had {wrong} of the {report.lane_chunks} chunks been wrong, so many chunks drawn at random "
            f"would have shown it with a chance of {chance:.0%}."
        )
    return (
        f"What this shows: {shows}\n"
        "What it does not: that the members were honest (a member may send what it likes, and signs it), that other "
        "chunks and other rounds are right, or what the model has learnt."
    )
