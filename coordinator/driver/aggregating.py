"""The last steps of a round: opens the sum, judges the adapter that it has measured, and publishes what came of it.

All of that is one transaction, so that a kill at any line leaves the round where it was; the sum is one of integers,
so the same is made again. What a long sum has come to lies below the scratch folder until the adapter is handed to the
blob store, or the round has failed: whoever takes the round up on this host goes on there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from common.adapters import ADAPTER_FILE, FlatFile
from common.errors import AccordError
from common.figures import figures, heldout_loss, share_figures
from common.instruction_updates import NextRound
from common.instructions import InstructionSet
from common.log import get_logger
from common.manifest import read_manifest
from common.plan import Plan
from common.privacy import told_sums
from common.secagg import TailSums, Unmasking
from common.sent import SentVector, moving_layout, sent_vector
from common.states import RoundKind
from common.strategies import server_optimizer
from common.update_chain import after_round, domain_words, handed_out
from common.version import software_version
from coordinator.aggregation import OpenSum
from coordinator.driver.ending import end_run
from coordinator.driver.work import TRY_AGAIN, View, Work, audit, phase_ended, round_ended
from coordinator.manifests import build_manifest, sign_manifest
from coordinator.next_adapter import NextAdapter, StartingPoint, make_next_adapter, state_file
from coordinator.product_monitor import product_error
from coordinator.rounds.events import Aggregated, RoundFailed
from coordinator.rounds.gate import Verdict, judge
from coordinator.rounds.lifecycle import advance_round
from coordinator.rounds.model import Adapter, AdapterState, Round, Run
from coordinator.runs import adapter_key, optimizer_state_key
from coordinator.store.interface import Writer
from coordinator.unmasking import open_unmasking
from coordinator.uploads import UploadReader, upload_prefix

CANDIDATE_SET_ASIDE: Final = "CANDIDATE_SET_ASIDE"
PRODUCT_ERROR: Final = "product_error"
_WORK_CONTEXT: Final = b"accord/sum/v1\x00"

log = get_logger(__name__)


def step_aggregating(work: Work, view: View, round_: Round) -> bool:
    with work.store.read() as reader:
        unmasking = open_unmasking(reader, view.run, round_)
        receipts = {upload.participant: upload.receipt for upload in reader.uploads(round_.run, round_.number)}
    layout = unmasking.context.layout
    uploads = [
        UploadReader(work.blobs, upload_prefix(round_.run, round_.number, name), layout) for name in round_.survivors
    ]
    opened = OpenSum(unmasking, uploads)
    tail = opened.tail()
    tail = replace(tail, metrics=told_sums(tail.metrics, view.plan.privacy.metrics))
    found = tuple(sorted((*figures(tail), *share_figures(InstructionSet.from_json(round_.instruction_set)))))
    verdict = judge(heldout_loss(found), accepted_loss=view.run.accepted_loss, gate=view.plan.gate)
    is_set_aside = not verdict.is_accepted and view.run.candidate_adapter is not None
    made: NextAdapter | None = None
    size = 0
    if round_.kind is RoundKind.TRAIN and not is_set_aside:
        made, measured, size = _make_adapter(work, view, round_, opened, tail, _sum_digest(unmasking, round_, receipts))
        found = tuple(sorted((*found, *measured)))
    with work.store.write() as writer:
        if tail.ignored_groups:
            # A member has filled words that all leave zero. Nobody looks at them, and the rest of the sum is right.
            audit(work, writer, "closed_groups_ignored", round_.name, groups=tail.ignored_groups)
            log.warning("closed_groups_ignored", round=round_.name, groups=tail.ignored_groups)
        run = _after_gate(work, view, writer, round_, verdict, found)
        if is_set_aside:
            after = _set_aside(work, view, writer, run, round_, verdict, found)
        else:
            after = advance_round(round_, Aggregated(view.now, made.digest if made else None, found))
            writer.update_round(after)
            if made is not None:
                run = replace(run, rounds_succeeded=run.rounds_succeeded + 1)
            # An update of nothing but zeros leaves the adapter that is there already, and has its digest.
            if made is not None and made.digest != round_.base_adapter:
                _publish(work, view, writer, after, made, size, tail)
                run = replace(run, candidate_adapter=made.digest)
            run = replace(run, failed_in_a_row=0, version=run.version + 1)
            writer.update_run(run)
            if round_.kind is RoundKind.EVALUATE:
                end_run(work, view, writer, run, round_, found)
    phase_ended(work, round_, after)
    round_ended(work, after)
    if view.run.candidate_adapter is not None and view.run.candidate_adapter == round_.base_adapter:
        work.observer.candidate_judged(is_accepted=verdict.is_accepted)
    return True


def _sum_digest(unmasking: Unmasking, round_: Round, receipts: Mapping[str, bytes]) -> str:
    """What names a round's sum and all that is made of it, hex: plan, round, cohort and model, survivors, uploads.

    The software's version is in it, too: another one may round otherwise.
    """
    digest = hashlib.sha256(_WORK_CONTEXT)
    parts = [software_version().encode(), unmasking.context.hash, bytes.fromhex(round_.base_adapter)]
    for name in round_.survivors:
        parts += [name.encode(), receipts[name]]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _make_adapter(
    work: Work, view: View, round_: Round, opened: OpenSum, tail: TailSums, sum_digest: str
) -> tuple[NextAdapter, tuple[tuple[str, float], ...], int]:
    """The next global adapter, in the blob store, what was measured of its whole sum, and its size in bytes."""
    plan, sent = view.plan, sent_vector(view.plan, round_.number)
    scratch = work.scratch / round_.run / str(round_.number)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        start = _starting_point(work, plan, round_, scratch)
        made = make_next_adapter(
            opened,
            tail,
            start=start,
            sent=sent,
            optimizer=server_optimizer(plan.method),
            max_update_norm=plan.masking.max_update_norm,
            scratch=scratch,
            work=sum_digest,
            still_ours=lambda: work.still_ours(round_.run),
        )
        measured = (("delta_norm", made.delta_norm), *_product_figure(plan, sent, opened, tail, start, made))
        size = made.path.stat().st_size
        if made.digest != round_.base_adapter:  # that one has its state
            for name, path in made.state.items():
                work.blobs.put_file(optimizer_state_key(round_.run, made.digest, name), path)
        work.blobs.put_file(adapter_key(made.digest), made.path)
    except AccordError as error:
        # These say nothing of the round: what is there so far is what the next try goes on with.
        if not isinstance(error, TRY_AGAIN):
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    return made, measured, size


def _starting_point(work: Work, plan: Plan, round_: Round, scratch: Path) -> StartingPoint:
    """The adapter that the round has trained from, and the optimiser's state that belongs to it: so who goes back to
    an earlier adapter goes back to its state, too."""

    def fetched(key: str, file: str) -> Path:
        path = scratch / f"base-{file}"
        work.blobs.fetch(key, path)
        return path

    base, layout = fetched(adapter_key(round_.base_adapter), ADAPTER_FILE), moving_layout(plan)
    names = server_optimizer(plan.method).initial_state
    with work.store.read() as reader:
        is_first = reader.adapter(round_.base_adapter).round == 0
    if is_first or not names:
        return StartingPoint(plan.layout(), base, layout)
    state = {
        name: fetched(optimizer_state_key(round_.run, round_.base_adapter, name), state_file(name)) for name in names
    }
    return StartingPoint(plan.layout(), base, layout, state)


def _product_figure(
    plan: Plan, sent: SentVector, opened: OpenSum, tail: TailSums, start: StartingPoint, made: NextAdapter
) -> tuple[tuple[str, float], ...]:
    if not plan.method.product_probes or made.mean is None:
        return ()
    base, mean = FlatFile.open(start.base, start.layout), FlatFile(made.mean, 0, sent.parameters)
    return ((PRODUCT_ERROR, product_error(plan, opened.plan, sent, tail, base=base, mean=mean)),)


def _after_gate(
    work: Work, view: View, writer: Writer, round_: Round, verdict: Verdict, found: tuple[tuple[str, float], ...]
) -> Run:
    """The run once the adapter that this round has measured is accepted or set aside; not yet written."""
    run = writer.run(view.run.name)
    loss = heldout_loss(found)
    candidate = run.candidate_adapter
    if candidate is None:
        # The round has measured an adapter that was accepted before; its loss is what later ones are compared with.
        return replace(run, accepted_loss=loss) if run.accepted_loss is None else run
    if candidate != round_.base_adapter:
        return run
    if verdict.is_accepted:
        writer.set_adapter_state(candidate, AdapterState.ACCEPTED, heldout_loss=loss)
        audit(work, writer, "adapter_accepted", f"adapters/{candidate}", verdict=verdict.message)
        return replace(run, accepted_adapter=candidate, candidate_adapter=None, accepted_loss=loss)
    writer.set_adapter_state(candidate, AdapterState.SET_ASIDE, heldout_loss=loss)
    audit(work, writer, "adapter_set_aside", f"adapters/{candidate}", verdict=verdict.message)
    return replace(run, candidate_adapter=None)


def _set_aside(
    work: Work,
    view: View,
    writer: Writer,
    run: Run,
    round_: Round,
    verdict: Verdict,
    found: tuple[tuple[str, float], ...],
) -> Round:
    """The candidate did not pass: what was trained from it is not published, the run goes back."""
    message = f"adapter {round_.base_adapter[:12]} is set aside: {verdict.message}"
    after = advance_round(round_, RoundFailed(view.now, CANDIDATE_SET_ASIDE, message))
    writer.update_round(after)
    run = replace(run, failed_in_a_row=run.failed_in_a_row + 1, version=run.version + 1)
    writer.update_run(run)
    audit(work, writer, "round_failed", round_.name, reason=CANDIDATE_SET_ASIDE, message=message)
    if round_.kind is RoundKind.EVALUATE:
        end_run(work, view, writer, run, round_, found)
    return after


def _publish(
    work: Work, view: View, writer: Writer, round_: Round, made: NextAdapter, size: int, tail: TailSums
) -> None:
    follows = _next_round(view, writer, round_, tail)
    manifest = sign_manifest(
        build_manifest(
            view.plan,
            plan_digest=view.run.plan_digest,
            round_number=round_.number,
            digest=made.digest,
            parent=round_.base_adapter,
            survivors=round_.survivors,
            metrics=round_.metrics,
            instruction_set=round_.instruction_set,
            at=view.now,
            domain_sums=domain_words(tail.metrics) if follows is not None else None,
            next_round=follows,
        ),
        work.signing_key,
    )
    writer.add_adapter(
        Adapter(
            digest=made.digest,
            run=round_.run,
            round=round_.number,
            state=AdapterState.CANDIDATE,
            size_bytes=size,
            parent=round_.base_adapter,
            manifest=manifest.content,
            manifest_signature=manifest.signature,
            created_at=view.now,
        )
    )
    audit(
        work,
        writer,
        "adapter_published",
        f"adapters/{made.digest}",
        round=round_.name,
        survivors=round_.survivors,
        parent=round_.base_adapter,
    )


def _next_round(view: View, writer: Writer, round_: Round, tail: TailSums) -> NextRound | None:
    """What this round's sums make of the instruction set, for the round that trains from its adapter."""
    base = read_manifest(writer.adapter(round_.base_adapter).manifest)
    return after_round(view.plan, handed_out(view.plan, base), tail.metrics, sites=tail.count)
