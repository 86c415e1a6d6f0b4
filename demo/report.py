"""The HTML report of a demo: one page that needs nothing beside itself, for somebody who was not there.

Pure but for the pictures: a `RunReport` in, text out. Everything that came from outside is escaped.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Final

from common.plan import HELD_OUT_GROUP
from demo.figures import METRIC_OF, METRIC_TITLES, DomainReport, RoundReport, RunReport
from demo.plots import loss_plot, metric_plot, time_plot
from demo.progress import clock, size
from demo.tables import number, stage_title

TEMPLATE: Final = "report.html"
MASKED_PHASES: Final = ("collecting", "unmasking", "aggregating")
# Names of what the coordinator gets to know of a round, as a reader understands them.
SUMS: Final[Mapping[str, str]] = {
    "survivors": "sites in the sum",
    "weight": "their weights together",
    "heldout_loss": "held-out loss, all sites together",
    "heldout_tokens": "answer tokens judged",
    "classification_accuracy": "accuracy, all classifications",
    "span_f1": "span F1, all entities",
    "rouge_l": "ROUGE-L, all free answers",
    "train_loss": "training loss",
    "train_records": "training records",
    "clipped_elements": "elements clipped",
    "delta_norm": "length of the mean delta",
}

# The same for what it does not get to know, by metric group of the plan.
GROUP_TITLES: Final[Mapping[str, str]] = {
    HELD_OUT_GROUP: "held-out loss",
    **{task.value: METRIC_TITLES[metric] for task, metric in METRIC_OF.items()},
}


def html_report(report: RunReport, *, finished: str) -> str:
    """The page. finished: when, as a reader should see it."""
    template = Template(resources.files("demo").joinpath("templates", TEMPLATE).read_text(encoding="utf-8"))
    plan = report.plan
    return template.substitute(
        title=escape(f"{len(report.domains)} sites tuned one model and shared no record"),
        finished=escape(finished),
        summary=_summary(report),
        cards="".join(_card(domain) for domain in report.domains),
        loss_plot=_image(loss_plot(report), "held-out loss of every domain, adapter by adapter"),
        metric_plot=_image(metric_plot(report), "task metric of every domain, adapter by adapter"),
        time_plot=_image(time_plot(report), "seconds of every phase, round by round"),
        stages=_stage_table(report),
        sites=_site_table(report.domains),
        rounds=_round_table(report),
        sums=_sum_table(report),
        closed_note=escape(_closed_note(report.rounds)),
        examples=_example_table(report),
        adapter=_facts(
            {
                "folder": report.adapter.path,
                "digest (SHA-256)": report.adapter.digest,
                "published by round": str(report.adapter.round),
                "parameters": f"{report.adapter.parameters:,}",
                "size": size(report.adapter.size_bytes),
                "base model": f"{report.base_model} ({report.base_model_digest})",
                "base model's folder": report.base_model_path,
            }
        ),
        agreed=_facts(
            {
                "charter, pinned by every site": report.charter_digest,
                "plan of the run": report.plan_digest,
                "audit log": f"{report.audit_lines} lines, chain verified",
            }
        ),
        snippet=escape(_snippet(report)),
        manifest=escape(json.dumps(report.adapter.manifest, indent=2, sort_keys=True)),
        plan=escape(json.dumps(plan, indent=2, sort_keys=True)),
    )


def _summary(report: RunReport) -> str:
    seconds = sum(report.seconds.values())
    steps = ", ".join(f"{escape(name)} {clock(value)}" for name, value in report.seconds.items())
    succeeded = sum(1 for round_ in report.rounds if round_.state == "succeeded" and round_.kind == "train")
    return (
        f"{succeeded} rounds of {escape(report.base_model)} with LoRA on this machine, every process on its own and "
        f"every connection under mutual TLS. {clock(seconds)} minutes in all ({steps}). "
        f"{size(report.uploaded_bytes)} of masked updates were sent; not one of them was ever seen in the clear."
    )


def _card(domain: DomainReport) -> str:
    base, final = domain.base.figure, domain.final.figure
    return (
        f'<div class="card"><h3>{escape(domain.site)}</h3><p>{escape(domain.title)}</p>'
        f"<dl><dt>held-out loss</dt><dd>{number(base.heldout_loss)} → <b>{number(final.heldout_loss)}</b></dd>"
        f"<dt>{METRIC_TITLES[final.metric]}</dt><dd>{number(base.value)} → <b>{number(final.value)}</b></dd></dl></div>"
    )


def _stage_table(report: RunReport) -> str:
    heads = ["global adapter"]
    for domain in report.domains:
        heads += [f"{domain.site}: loss", f"{domain.site}: {METRIC_TITLES[domain.base.figure.metric]}"]
    rows: list[list[str]] = []
    for round_ in sorted({stage.round for domain in report.domains for stage in domain.stages}):
        row = [stage_title(round_, is_final=all(domain.final.round == round_ for domain in report.domains))]
        for domain in report.domains:
            figure = next((stage.figure for stage in domain.stages if stage.round == round_), None)
            row += [number(figure.heldout_loss), number(figure.value)] if figure is not None else ["–", "–"]
        rows.append(row)
    return table(heads, rows, numbers=True)


def _site_table(domains: Sequence[DomainReport]) -> str:
    return table(
        ["site", "domain", "task", "records to train on", "held out", "where they come from"],
        [
            [
                domain.site,
                domain.domain,
                domain.task.value,
                str(domain.train_records),
                str(domain.heldout_records),
                domain.source,
            ]
            for domain in domains
        ],
    )


def _round_table(report: RunReport) -> str:
    return table(
        ["round", "for", "end", "in the sum", "training", "masked part", "masked bytes by site", "adapter"],
        [
            [
                str(round_.number),
                "judging only" if round_.kind == "evaluate" else "training",
                round_.state + (f": {round_.reason} {round_.message}" if round_.reason else ""),
                ", ".join(round_.survivors) or "–",
                f"{round_.seconds.get('training', 0.0):.0f} s",
                f"{sum(round_.seconds.get(phase, 0.0) for phase in MASKED_PHASES):.2f} s",
                ", ".join(f"{site} {size(count)}" for site, count in round_.uploaded_bytes.items()),
                round_.adapter_digest[:12] or "–",
            ]
            for round_ in report.rounds
        ],
    )


def _sum_table(report: RunReport) -> str:
    names = [name for name in SUMS if any(name in round_.metrics for round_ in report.rounds)]
    return table(
        ["sum over the sites", *(f"round {round_.number}" for round_ in report.rounds)],
        [[SUMS[name], *(_sum(round_.metrics.get(name)) for round_ in report.rounds)] for name in names],
        numbers=True,
    )


def _closed_note(rounds: Sequence[RoundReport]) -> str:
    """What the coordinator was not told although sites have it, and why: a reader misses it in the table."""
    closed = {group.name: group for round_ in rounds for group in round_.closed_metric_groups if group.contributors}
    if not closed:
        return ""
    names = ", ".join(
        f"{GROUP_TITLES.get(name, name)} (of {group.contributors} of the sites, it would take {group.needed})"
        for name, group in sorted(closed.items())
    )
    return (
        " A sum to which one site alone contributes would be that site's own figure. So the sites fill in zeros where "
        f"too few of them have something to sum, and the coordinator never learns: {names}."
    )


def _sum(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value == int(value) else f"{value:.3f}"


def _example_table(report: RunReport) -> str:
    return table(
        ["domain", "question", "wanted", "base model", "tuned model"],
        [[example.domain, example.prompt, example.wanted, example.base, example.tuned] for example in report.examples],
        wide=True,
    )


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _snippet(report: RunReport) -> str:
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {report.base_model_path!r}
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), {report.adapter.path!r})
tokenizer = AutoTokenizer.from_pretrained(base)"""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False, wide: bool = False) -> str:
    """An HTML table of plain texts. numbers: all but the first column are; wide: cells hold sentences."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    kind = "numbers" if numbers else "wide" if wide else "plain"
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _image(svg: str, description: str) -> str:
    """As an image of its own: ids in one picture cannot meet those in another."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{data}">'
