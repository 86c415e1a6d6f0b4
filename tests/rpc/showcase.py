"""A federation with something to see: three domains, a site that is lost, one that fails, one whose policy declines.

For tests of what people are shown; everything in it went through the real coordinator and real daemons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from common.instructions import InstructionSet
from participant.trainer import Preparation
from participant.training.result import JobResult
from tests.rpc.federation import POLICY, WINDOW, Federation, delta_of, federation_in
from tests.rpc.test_domains import DomainTrainer

WEB = '[web]\nlisten = "127.0.0.1:0"\n'
SITES = {
    "clinic": ("north-hospital", "river-clinic", "st-anna"),
    "finance": ("allied-bank", "city-insurer", "harbour-bank"),
    "news": ("daily-post", "press-agency", "radio-nord"),
}
LOST, DECLINING = "city-insurer", "old-library"
RUN, ENDED_RUN = "support", "pilot"
# Loss at the end and pace of learning.
_LEARNS = {"clinic": (1.75, 0.3), "finance": (1.1, 0.5), "news": (1.45, 0.4)}


@dataclass
class TwoDomains(DomainTrainer):
    """A site with records of two domains, of which it learns each at its own pace."""

    second: str = "finance"
    place: int = 0

    def metric_groups(self) -> frozenset[str]:
        return super().metric_groups() | replace(self, domain=self.second, second=self.domain)._groups()

    def _groups(self) -> frozenset[str]:
        return DomainTrainer.metric_groups(self)

    def _result(self, work: Preparation, used: InstructionSet) -> JobResult:
        found = []
        for domain in (self.domain, self.second):
            own = replace(self, domain=domain, loss=partial(_loss, domain, self.place))
            found.append(DomainTrainer._result(own, work, used))
        report = replace(found[0].held_out_data, domains=tuple(one.held_out_data.domains[0] for one in found))
        cells = tuple(cell for one in found for cell in one.cells)
        return replace(found[0], cells=cells, held_out_data=report, train_data=report)


def _loss(domain: str, place: int, round_: int) -> float:
    floor, pace = _LEARNS[domain]
    return floor + (2.6 - floor) * math.exp(-pace * (round_ - 1)) + 0.02 * math.sin(5 * round_ + place)


def add_sites(federation: Federation) -> None:
    """All sites, and one more whose policy takes smaller adapters alone."""
    domains = list(SITES)
    place = 0
    for domain, names in SITES.items():
        second = domains[(domains.index(domain) + 1) % len(domains)]
        for name in names:
            trainer = TwoDomains(
                delta_of(place, size=0.01), records=300 + 70 * place, domain=domain, second=second, place=place
            )
            federation.add_site(name, trainer)
            place += 1
    strict = POLICY.replace("most_rank = 64", "most_rank = 2")
    federation.add_site(DECLINING, DomainTrainer(delta_of(place), domain="news"), policy=strict)


def create_run(federation: Federation, name: str, *, rounds: int) -> None:
    federation.create_run(
        name,
        is_started=False,
        rounds=rounds,
        domains=[{"name": domain, "tasks": ["classification"]} for domain in SITES],
        gate_loss_rise=1.0,
    )
    federation.turn_until(
        lambda: sum(row["joined"] for row in federation.run(name)["members"]) == sum(map(len, SITES.values()))
    )
    federation.start_run(name)


def play(federation: Federation, number: int, *, run: str = RUN) -> None:
    """A round, in which time passes as it does in a real one: most of it while sites train."""
    seconds = {"forming": 0.4, "training": 41.0, "collecting": 1.6, "unmasking": 0.5, "aggregating": 0.2}
    names = list(federation.sites)
    for _ in range(80):
        for group in (names[::2], names[1::2]):
            federation.turn(group)
            found = federation.round(number, run)
            if found["state"] == "succeeded":
                return
            is_setting_up = found["epoch_state"] in ("advertising", "sharing", "confirming")
            federation.advance(0.3 if is_setting_up else seconds.get(found["state"], 0.1) / 2)
    raise AssertionError(f"round {number} does not end: {federation.round(number, run)}")


def lose_one(federation: Federation, number: int) -> None:
    """A round in which one site's line is cut before it uploads."""
    line = federation.sites[LOST].line
    line.cut(before="upload")
    play(federation, number)
    assert line.is_cut
    line.mend()


def leave_open(federation: Federation, number: int) -> None:
    """A round in which most have something ready, and one is silent."""
    federation.sites[LOST].line.cut()
    others = [name for name in federation.sites if name != LOST]
    federation.turn_until(lambda: federation.run(RUN)["round"] == number, sites=others)
    federation.turn_until(lambda: len(federation.participations(number, RUN)) == len(others) - 1, sites=others)
    federation.advance(WINDOW + 1)
    for name in others[:6]:
        federation.turn([name])
        federation.advance(14)


@contextmanager
def showcase_in(folder: Path, *, rounds: int, with_ended_run: bool = False) -> Iterator[Federation]:
    """A run whose round `rounds` + 1 waits for a silent site, and maybe one that has ended; round 3 has lost a site."""
    with federation_in(folder, sections=WEB) as federation:
        add_sites(federation)
        if with_ended_run:
            create_run(federation, ENDED_RUN, rounds=1)
            play(federation, 1, run=ENDED_RUN)
            play(federation, 2, run=ENDED_RUN)
        create_run(federation, RUN, rounds=max(10, rounds + 2))
        for number in range(1, rounds + 1):
            if number == 3:
                lose_one(federation, number)
            else:
                play(federation, number)
        leave_open(federation, rounds + 1)
        yield federation
