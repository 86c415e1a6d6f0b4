"""The table at the end of a demo: every domain's held-out loss and task metric, adapter by adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from demo.figures import METRIC_TITLES, DomainReport, Example, RunReport
from demo.progress import clock, size


def final_table(report: RunReport) -> Table:
    """One row a global adapter, two columns a domain; the row of the final adapter stands out."""
    table = Table(title="Each site's held-out records, judged by each global adapter", title_style="bold")
    table.add_column("global adapter")
    for domain in report.domains:
        table.add_column(f"{domain.site}\nloss", justify="right")
        table.add_column(f"\n{METRIC_TITLES[domain.base.figure.metric]}", justify="right")
    for round_ in sorted({stage.round for domain in report.domains for stage in domain.stages}):
        is_final = all(domain.final.round == round_ for domain in report.domains)
        cells = [cell for domain in report.domains for cell in _cells(domain, round_)]
        table.add_row(stage_title(round_, is_final=is_final), *cells, style="bold" if is_final else "")
    return table


def stage_title(round_: int, *, is_final: bool) -> str:
    """ "base model", "after round 2"."""
    title = "base model" if round_ == 0 else f"after round {round_}"
    return f"{title} (final)" if is_final else title


def _cells(domain: DomainReport, round_: int) -> tuple[str, str]:
    figure = next((stage.figure for stage in domain.stages if stage.round == round_), None)
    if figure is None:
        return "–", "–"
    return number(figure.heldout_loss), number(figure.value)


def number(value: float | None) -> str:
    """Three digits after the point."""
    return "–" if value is None else f"{value:.3f}"


def one_example_each(report: RunReport) -> tuple[Example, ...]:
    """Of every domain, the first example on which the two models differ, else the first."""
    chosen: list[Example] = []
    for domain in report.domains:
        own = [example for example in report.examples if example.domain == domain.domain]
        chosen.extend([next((example for example in own if example.base != example.tuned), own[0])] if own else [])
    return tuple(chosen)


def example_table(examples: Sequence[Example]) -> Table:
    """Base and tuned model side by side."""
    table = Table(title="A held-out question of every domain", title_style="bold", show_lines=True)
    for heading in ("domain", "question", "wanted", "base model", "tuned model"):
        table.add_column(heading, overflow="fold")
    for example in examples:
        table.add_row(
            *(Text(cell) for cell in (example.domain, example.prompt, example.wanted, example.base, example.tuned))
        )
    return table


def closing_tables(report: RunReport) -> RenderableType:
    """What was learned, and an example of it."""
    return Group(Text(), final_table(report), Text(), example_table(one_example_each(report)), Text())


def closing_lines(report: RunReport, *, html: Path, json_file: Path) -> Iterator[str]:
    """Where everything is: a line each, never broken, so that paths can be taken from it."""
    seconds = ", ".join(f"{name} {clock(value)}" for name, value in report.seconds.items())
    yield f"time        {clock(sum(report.seconds.values()))} in all: {seconds}"
    yield f"sent        {size(report.uploaded_bytes)} of masked updates, not one of them in the clear"
    yield f"base model  {report.base_model_path}"
    yield f"adapter     {report.adapter.path}"
    yield f"report      {html}"
    yield f"json        {json_file}"
