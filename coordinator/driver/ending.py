"""How a run ends after its evaluation round; and whether a domain adapter was worth its run."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from common.figures import domain_loss
from common.states import RoundState
from coordinator.driver.work import View, Work, audit
from coordinator.rounds.events import RunFailed, RunFinished
from coordinator.rounds.gate import Measured, Verdict, judge_improvement
from coordinator.rounds.lifecycle import advance_run
from coordinator.rounds.model import AdapterState, Round, Run
from coordinator.store.interface import Writer

NO_IMPROVEMENT: Final = "NO_IMPROVEMENT"


def end_run(
    work: Work, view: View, writer: Writer, run: Run, last: Round, found: tuple[tuple[str, float], ...]
) -> None:
    """Write the run's end. run: after the gate of `last`, its evaluation round, whose figures are `found`.

    A domain adapter that is not better than none by what the plan asks for is set aside with all before it.
    """
    verdict = _verdict(view, writer, run, last, found)
    if verdict.is_accepted:
        writer.update_run(advance_run(run, RunFinished(view.now)))
        audit(work, writer, "run_succeeded", f"runs/{run.name}", adapter=run.accepted_adapter)
        return
    adapters = writer.adapters(run.name).rows
    first = next(adapter for adapter in adapters if adapter.round == 0)
    for adapter in adapters:
        if adapter.round and adapter.state is not AdapterState.SET_ASIDE:
            writer.set_adapter_state(adapter.digest, AdapterState.SET_ASIDE, heldout_loss=adapter.heldout_loss)
            audit(work, writer, "adapter_set_aside", f"adapters/{adapter.digest}", verdict=verdict.message)
    message = f"the adapter for {view.plan.domain} is not kept: {verdict.message}"
    failed = advance_run(replace(run, accepted_adapter=first.digest), RunFailed(view.now, NO_IMPROVEMENT, message))
    writer.update_run(failed)
    audit(work, writer, "run_failed", f"runs/{run.name}", reason=NO_IMPROVEMENT, message=message)


def _verdict(view: View, writer: Writer, run: Run, last: Round, found: tuple[tuple[str, float], ...]) -> Verdict:
    plan = view.plan
    if not plan.gate.standard_errors:
        return Verdict(True, "nothing is asked")
    measured = {last.base_adapter: _measured(found, plan.domain)}
    for number in range(last.number - 1, 0, -1):
        earlier = writer.round(run.name, number)
        if earlier.state is RoundState.SUCCEEDED:
            measured.setdefault(earlier.base_adapter, _measured(earlier.metrics, plan.domain))
    first = next(adapter for adapter in writer.adapters(run.name).rows if adapter.round == 0)
    return judge_improvement(
        measured.get(first.digest),
        measured.get(run.accepted_adapter),
        standard_errors=plan.gate.standard_errors,
    )


def _measured(figures: tuple[tuple[str, float], ...], domain: str) -> Measured | None:
    found = domain_loss(figures, domain)
    return Measured(*found) if found is not None else None
