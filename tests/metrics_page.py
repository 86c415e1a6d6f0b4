"""docs/metrics.md from the code: every metric of both services, its labels and all their values.

`python -m tests.metrics_page` writes the page; a test says when it is no longer what the code has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from common.assignments import Assignment
from common.errors import AccordError
from common.identifiers import Role
from common.states import RoundKind, RoundState, RunState
from coordinator.authorization import RULES
from coordinator.connections import Closing
from coordinator.metrics import DECLINE_REASONS, DROP_REASONS, OTHER, Direction, Metrics, Verdict
from coordinator.open_runs import FIGURES, PARTICIPANTS, Standing
from coordinator.rounds.model import ParticipantState
from coordinator.store.measured import BlobOperation, StoreOperation
from participant.metrics import OTHER_REASON, REASONS, ParticipantMetrics, RoundResult, WorkPhase

PAGE: Final = Path(__file__).parents[1] / "docs" / "metrics.md"

# What no list can hold beforehand; each grows with the federation and not with what somebody says.
MEMBERS: Final = "names of enrolled participants"
OPEN_RUN: Final = "names of open runs; the series goes with the run"
VERSION: Final = "the software's version"
Values = frozenset[str] | str

_OVER: Final = frozenset(state.value for state in RoundState if state.is_over)
_PHASES: Final = frozenset(state.value for state in RoundState if not state.is_over)
_DROPPED: Final = frozenset({*DROP_REASONS, OTHER})


def _reasons(kind: type[AccordError] = AccordError) -> frozenset[str]:
    return frozenset({kind.reason}).union(*(_reasons(sub) for sub in kind.__subclasses__()))


# By metric and label.
LABELS: Final[Mapping[str, Mapping[str, Values]]] = {
    "accord_open_runs": {"state": frozenset(state.value for state in RunState if not state.is_over)},
    "accord_open_rounds": {"phase": _PHASES},
    "accord_rounds_ended": {"kind": frozenset(kind.value for kind in RoundKind), "state": _OVER},
    "accord_round_seconds": {"kind": frozenset(kind.value for kind in RoundKind), "state": _OVER},
    "accord_phase_seconds": {"phase": _PHASES},
    "accord_participations_dropped": {"participant": MEMBERS, "reason": _DROPPED},
    "accord_contributions_accepted": {"participant": MEMBERS},
    "accord_candidates_judged": {"verdict": frozenset(Verdict)},
    "accord_runs_declined": {"participant": MEMBERS, "reason": frozenset({*DECLINE_REASONS, OTHER})},
    "accord_rpcs": {"method": frozenset(RULES), "code": frozenset(code.name for code in grpc.StatusCode)},
    "accord_rpc_seconds": {"method": frozenset(RULES)},
    "accord_refusals": {
        "role": frozenset(role.value for role in Role),
        "reason": _reasons() | {closing.value for closing in Closing},
    },
    "accord_connections": {"listener": frozenset({"participants", "admin", "enrollment"})},
    "accord_driver_step_seconds": {"step": frozenset({"run", "epoch", "round"})},
    "accord_store_seconds": {"operation": frozenset(StoreOperation)},
    "accord_store_failures": {"operation": frozenset(StoreOperation)},
    "accord_blob_seconds": {"operation": frozenset(BlobOperation)},
    "accord_blob_failures": {"operation": frozenset(BlobOperation)},
    "accord_blob_bytes": {"direction": frozenset(Direction)},
    "accord_participants": {"state": frozenset(state.value for state in ParticipantState)},
    "accord_participant_last_seen_timestamp_seconds": {"participant": MEMBERS},
    "accord_certificate_days_left": {"certificate": frozenset({"server", "ca"})},
    "accord_participant_certificate_days_left": {"participant": MEMBERS},
    "accord_build_info": {"version": VERSION},
    PARTICIPANTS: {"run": OPEN_RUN, "standing": frozenset(Standing)},
    **{name: {"run": OPEN_RUN} for name in FIGURES},
    "accord_participant_assignments": {"task": frozenset(kind.__name__ for kind in Assignment.__args__)},
    "accord_participant_rounds": {"result": frozenset(RoundResult)},
    "accord_participant_phase_seconds": {"phase": frozenset(WorkPhase)},
    "accord_participant_refusals": {"reason": frozenset({*REASONS, OTHER_REASON})},
    "accord_participant_failures": {"reason": frozenset({*REASONS, OTHER_REASON})},
    "accord_participant_privacy_epsilon_spent": {"of": frozenset({"training", "figures"})},
    "accord_participant_privacy_epsilon_budget": {"of": frozenset({"training", "figures"})},
    "accord_participant_build_info": {"version": VERSION},
}
# Of the client library and the kernel, on both.
PROCESS: Final = "process_"


HEAD: Final = """# Metrics

Every metric of both services, with its labels and all values that they can have. Written from the code by
`python -m tests.metrics_page`; [monitoring.md](monitoring.md) says how to scrape and what to look at.
Beside these each service shows the client library's own `process_*`: memory, CPU time, open files.
A histogram has `_bucket`, `_sum` and `_count`. Figures of one site are on that site's own listener alone.
"""


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric as the code declares it; `name` as it is scraped."""

    name: str
    family: str
    kind: str
    labels: tuple[str, ...]
    text: str


def declared(registry: CollectorRegistry) -> Iterator[Declared]:
    """Every metric of a registry that is Accord's own, by name."""
    by_family = {
        collector._name: collector._labelnames
        for collector in registry._collector_to_names
        if isinstance(collector, MetricWrapperBase)
    }
    for family in sorted(registry.collect(), key=lambda found: found.name):
        if family.name.startswith(PROCESS):
            continue
        labels = by_family.get(family.name)
        if labels is None:
            labels = tuple(LABELS.get(family.name, {}))
        scraped = f"{family.name}_total" if family.type == "counter" else family.name
        yield Declared(scraped, family.name, family.type, tuple(labels), family.documentation)


def services() -> Mapping[str, CollectorRegistry]:
    """The registries of both services, as they are made."""
    site = CollectorRegistry()
    ParticipantMetrics.create(site)
    return {"coordinator": Metrics().registry, "participant": site}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for service, registry in services().items():
        parts.append(f"\n## {service.capitalize()}\n\n| metric | kind | what | labels |\n|---|---|---|---|\n")
        for one in declared(registry):
            labels = "; ".join(f"`{label}`: {_values(LABELS[one.family][label])}" for label in one.labels)
            parts.append(f"| `{one.name}` | {one.kind} | {one.text} | {labels} |\n")
    return "".join(parts)


def _values(values: Values) -> str:
    if isinstance(values, str):
        return values
    if values == frozenset(RULES):
        return "the methods of [`coordinator/authorization.py`](../coordinator/authorization.py)"
    if len(values) > 30:
        own = ", ".join(f"`{closing.value}`" for closing in Closing)
        return f"reasons of [troubleshooting.md](troubleshooting.md), and of connections {own}"
    return ", ".join(f"`{value}`" for value in sorted(values))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
