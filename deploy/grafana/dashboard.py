"""The Grafana dashboard, as a table of panels; `python deploy/grafana/dashboard.py` writes accord.json beside it.

Queries take the max over replicas where all of them show the same store, and the sum where each counts its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DASHBOARD: Final = Path(__file__).parent / "accord.json"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24


class Panel:
    """title, kind and unit are Grafana's own words; queries: PromQL, and its legend as PromQL's comment."""

    def __init__(
        self, title: str, kind: str, unit: str, *queries: str, width: int = 8, height: int = 7, text: str = ""
    ) -> None:
        self.title = title
        self.kind = kind
        self.unit = unit
        self.queries = [expression.rstrip() for expression, _, _ in (query.partition("  # ") for query in queries)]
        self.legends = [query.partition("  # ")[2] for query in queries]
        self.width = width
        self.height = height
        self.text = text


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "At a glance",
        (
            Panel("Coordinators ready", "stat", "none", "sum(accord_ready)", width=4, height=4),
            Panel("Running runs", "stat", "none", 'max(accord_open_runs{state="running"})', width=4, height=4),
            Panel("Active participants", "stat", "none", 'max(accord_participants{state="active"})', width=4, height=4),
            Panel(
                "Seen in the last 5 minutes",
                "stat",
                "none",
                (
                    "count(max by (participant) (accord_participant_last_seen_timestamp_seconds) > time() - 300) or "
                    "vector(0)"
                ),
                width=4,
                height=4,
            ),
            Panel(
                "Certificate that ends first",
                "stat",
                "d",
                'min({__name__=~"accord_certificate_days_left|accord_participant_certificate_days_left"})',
                width=4,
                height=4,
            ),
            Panel(
                "Disk free",
                "stat",
                "percentunit",
                "min(accord_data_free_bytes / accord_data_size_bytes)",
                width=4,
                height=4,
            ),
        ),
    ),
    (
        "Runs",
        (
            Panel(
                "Held-out loss, published",
                "timeseries",
                "none",
                'max by (run) (accord_run_heldout_loss_nats{run=~"$run"})  # {{run}}',
                'max by (run) (accord_run_accepted_loss_nats{run=~"$run"})  # {{run}}, accepted adapter',
                'max by (run) (accord_run_train_loss_nats{run=~"$run"})  # {{run}}, training',
                width=12,
                height=9,
                text="Nats per answer token, means over a cohort.",
            ),
            Panel(
                "Rounds succeeded of those planned",
                "bargauge",
                "percentunit",
                (
                    'max by (run) (accord_run_rounds_succeeded{run=~"$run"}) / max by (run) '
                    '(accord_run_rounds_planned{run=~"$run"})  # {{run}}'
                ),
                width=6,
                height=9,
            ),
            Panel(
                "Rounds failed in a row",
                "stat",
                "none",
                'max by (run) (accord_run_failed_rounds_in_a_row{run=~"$run"})  # {{run}}',
                width=6,
                height=9,
            ),
            Panel(
                "Open round: participants",
                "timeseries",
                "none",
                'max by (run, standing) (accord_run_participants{run=~"$run"})  # {{run}}, {{standing}}',
                'max by (run) (accord_run_phase_quorum{run=~"$run"})  # {{run}}, quorum',
            ),
            Panel(
                "Open round: time left in its phase",
                "timeseries",
                "s",
                'max by (run) (accord_run_phase_deadline_timestamp_seconds{run=~"$run"}) - time()  # {{run}}',
            ),
            Panel("Open rounds by phase", "timeseries", "none", "max by (phase) (accord_open_rounds)  # {{phase}}"),
        ),
    ),
    (
        "Rounds and contributions",
        (
            Panel(
                "Rounds ended",
                "timeseries",
                "none",
                ("sum by (kind, state) (increase(accord_rounds_ended_total[$__rate_interval]))  # {{kind}}, {{state}}"),
            ),
            Panel(
                "Length of a round, median and 95 %",
                "timeseries",
                "s",
                "histogram_quantile(0.5, sum by (le) (accord_round_seconds_bucket))  # median",
                "histogram_quantile(0.95, sum by (le) (accord_round_seconds_bucket))  # 95 %",
            ),
            Panel(
                "Length of phases, mean",
                "timeseries",
                "s",
                (
                    "sum by (phase) (accord_phase_seconds_sum) / sum by (phase) (accord_phase_seconds_count)  # "
                    "{{phase}}"
                ),
            ),
            Panel(
                "Contributions accepted in a day",
                "bargauge",
                "none",
                "sum by (participant) (increase(accord_contributions_accepted_total[1d]))  # {{participant}}",
            ),
            Panel(
                "Dropped out in a day, by reason",
                "table",
                "none",
                "sum by (participant, reason) (increase(accord_participations_dropped_total[1d]))",
            ),
            Panel(
                "Runs declined in a day, by reason",
                "table",
                "none",
                "sum by (participant, reason) (increase(accord_runs_declined_total[1d]))",
            ),
            Panel(
                "Verdicts of the gate in a day",
                "bargauge",
                "none",
                "sum by (verdict) (increase(accord_candidates_judged_total[1d]))  # {{verdict}}",
            ),
            Panel(
                "Bytes in and out",
                "timeseries",
                "Bps",
                "sum(rate(accord_upload_bytes_total[$__rate_interval]))  # uploads",
                "sum(rate(accord_download_bytes_total[$__rate_interval]))  # downloads",
            ),
            Panel(
                "Uploads resumed",
                "timeseries",
                "none",
                "sum(increase(accord_upload_resumes_total[$__rate_interval]))  # resumed",
            ),
        ),
    ),
    (
        "Coordinator",
        (
            Panel(
                "Calls a second, by code",
                "timeseries",
                "reqps",
                "sum by (code) (rate(accord_rpcs_total[$__rate_interval]))  # {{code}}",
            ),
            Panel(
                "Length of calls, 99 %, long polls apart",
                "timeseries",
                "s",
                (
                    "histogram_quantile(0.99, sum by (method, le) (rate("
                    'accord_rpc_seconds_bucket{method!~".*(GetAssignment|GetEvidence)"}[$__rate_interval])))'
                    "  # {{method}}"
                ),
            ),
            Panel(
                "Refused",
                "timeseries",
                "none",
                ("sum by (role, reason) (increase(accord_refusals_total[$__rate_interval]))  # {{role}}, {{reason}}"),
            ),
            Panel(
                "Database, 99 %",
                "timeseries",
                "s",
                (
                    "histogram_quantile(0.99, sum by (operation, le) "
                    "(rate(accord_store_seconds_bucket[$__rate_interval])))  # {{operation}}"
                ),
            ),
            Panel(
                "Blob store, 99 %",
                "timeseries",
                "s",
                (
                    "histogram_quantile(0.99, sum by (operation, le) "
                    "(rate(accord_blob_seconds_bucket[$__rate_interval])))  # {{operation}}"
                ),
            ),
            Panel(
                "Failures of database, blob store, driver and audit log",
                "timeseries",
                "none",
                (
                    "sum by (operation) (increase(accord_store_failures_total[$__rate_interval]))  # database, "
                    "{{operation}}"
                ),
                ("sum by (operation) (increase(accord_blob_failures_total[$__rate_interval]))  # blobs, {{operation}}"),
                "sum(increase(accord_driver_failures_total[$__rate_interval]))  # driver",
                "sum(increase(accord_audit_failures_total[$__rate_interval]))  # audit log",
            ),
            Panel(
                "Leases held, and the oldest",
                "timeseries",
                "none",
                "accord_leases_held  # {{instance}}",
                "sum(increase(accord_leases_lost_total[$__rate_interval]))  # lost",
            ),
            Panel(
                "Steps of the driver, mean",
                "timeseries",
                "s",
                (
                    "sum by (step) (accord_driver_step_seconds_sum) / "
                    "sum by (step) (accord_driver_step_seconds_count)  # {{step}}"
                ),
            ),
            Panel("Open connections", "timeseries", "none", "sum by (listener) (accord_connections)  # {{listener}}"),
            Panel(
                "Certificates, days left",
                "bargauge",
                "d",
                "min by (certificate) (accord_certificate_days_left)  # {{certificate}}",
                "min by (participant) (accord_participant_certificate_days_left)  # {{participant}}",
            ),
            Panel(
                "Last seen",
                "bargauge",
                "s",
                ("time() - max by (participant) (accord_participant_last_seen_timestamp_seconds)  # {{participant}}"),
            ),
            Panel(
                "Memory of the processes",
                "timeseries",
                "bytes",
                "process_resident_memory_bytes and on (instance) accord_ready  # {{instance}}",
            ),
        ),
    ),
    (
        "Own sites: what this Prometheus scrapes of participants",
        (
            Panel(
                "Training, tokens a second",
                "timeseries",
                "none",
                'accord_participant_training_tokens_per_second{instance=~"$site"}  # {{instance}}',
            ),
            Panel(
                "Loss at the site",
                "timeseries",
                "none",
                'accord_participant_training_loss_nats{instance=~"$site"}  # {{instance}}, training',
                'accord_participant_heldout_loss_nats{instance=~"$site"}  # {{instance}}, held out',
                text="This site's own figures: they leave it only in sums over a cohort.",
            ),
            Panel(
                "Steps",
                "timeseries",
                "none",
                (
                    'increase(accord_participant_training_steps_total{instance=~"$site"}[$__rate_interval])  # '
                    "{{instance}}"
                ),
            ),
            Panel(
                "Where a round's time goes, mean",
                "bargauge",
                "s",
                (
                    'sum by (phase) (accord_participant_phase_seconds_sum{instance=~"$site"}) / (sum by (phase) '
                    '(accord_participant_phase_seconds_count{instance=~"$site"}) > 0)  # {{phase}}'
                ),
            ),
            Panel(
                "Rounds, by result",
                "timeseries",
                "none",
                (
                    'sum by (instance, result) (accord_participant_rounds_total{instance=~"$site"})  # {{instance}}, '
                    "{{result}}"
                ),
            ),
            Panel(
                "Privacy budget spent",
                "gauge",
                "percentunit",
                (
                    'accord_participant_privacy_epsilon_spent{instance=~"$site"} / '
                    'accord_participant_privacy_epsilon_budget{instance=~"$site"}  # {{instance}}, {{of}}'
                ),
            ),
            Panel(
                "Bytes sent and fetched",
                "timeseries",
                "Bps",
                (
                    'rate(accord_participant_upload_bytes_total{instance=~"$site"}[$__rate_interval])  # '
                    "{{instance}}, sent"
                ),
                (
                    'rate(accord_participant_download_bytes_total{instance=~"$site"}[$__rate_interval])  # '
                    "{{instance}}, fetched"
                ),
            ),
            Panel(
                "Failures and refusals",
                "timeseries",
                "none",
                (
                    "sum by (reason) (increase("
                    'accord_participant_failures_total{instance=~"$site"}[$__rate_interval]))  # failed, {{reason}}'
                ),
                (
                    "sum by (reason) (increase("
                    'accord_participant_refusals_total{instance=~"$site"}[$__rate_interval]))  # refused, {{reason}}'
                ),
            ),
            Panel(
                "Since the coordinator answered; certificate; disk; clock",
                "table",
                "none",
                'time() - accord_participant_last_contact_timestamp_seconds{instance=~"$site"}  # seconds',
                (
                    '(accord_participant_certificate_expiry_timestamp_seconds{instance=~"$site"} - time()) / 86400  '
                    "# days of certificate left"
                ),
                (
                    'accord_participant_state_free_bytes{instance=~"$site"} / '
                    'accord_participant_state_size_bytes{instance=~"$site"}  # disk free'
                ),
                'accord_participant_clock_difference_seconds{instance=~"$site"}  # clock',
            ),
        ),
    ),
)


def queries() -> Iterator[tuple[str, str]]:
    """(panel, PromQL) of the whole dashboard, variables' own queries among them."""
    for _, panels in ROWS:
        for panel in panels:
            for expression in panel.queries:
                yield panel.title, expression
    yield "variable run", "accord_run_round"
    yield "variable site", "accord_participant_build_info"


def dashboard() -> dict[str, object]:
    """As Grafana imports it."""
    panels: list[dict[str, object]] = []
    top = 0
    for title, row in ROWS:
        panels.append(
            {"type": "row", "title": title, "id": len(panels) + 1, "panels": [], "gridPos": _place(0, top, WIDTH, 1)}
        )
        left, top, tallest = 0, top + 1, 0
        for panel in row:
            if left + panel.width > WIDTH:
                left, top, tallest = 0, top + tallest, 0
            panels.append(_panel(panel, len(panels) + 1, _place(left, top, panel.width, panel.height)))
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return {
        "uid": "accord",
        "title": "Accord",
        "tags": ["accord"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
                _variable("run", "Run", "label_values(accord_run_round, run)"),
                _variable("site", "Site", "label_values(accord_participant_build_info, instance)"),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, label: str, query: str) -> dict[str, object]:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, object]:
    is_table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend or "__auto",
            **({"format": "table", "instant": True} if is_table else {}),
        }
        for index, (expression, legend) in enumerate(zip(panel.queries, panel.legends, strict=True))
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {},
        "targets": targets,
    }


if __name__ == "__main__":
    DASHBOARD.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
