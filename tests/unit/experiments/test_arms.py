"""What the arms of an experiment have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from common.errors import InvalidArgument
from demo.sites import BaseModelFolder
from demo.sources.records import Task
from experiments.arms import Arms, side_by_side
from experiments.pool import Pool
from experiments.presets import PRESETS
from experiments.sites import Site
from tests.rpc.federation import MODEL


def test_work_side_by_side_comes_back_in_the_items_order():
    assert side_by_side(lambda item: item * item, range(20)) == [item * item for item in range(20)]


def test_a_failure_waits_for_nobody_and_begins_nothing_more():
    released, begun = Event(), list[int]()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise InterruptedError
        assert released.wait(60)

    with pytest.raises(InterruptedError):
        side_by_side(work, range(50))
    at_work = len(begun)
    released.set()
    assert at_work < 50


def arms_of(place: Path, *, text: str = "{}\n", base: str = "ab") -> Arms:
    folder = place / "sites" / "bank"
    folder.mkdir(parents=True, exist_ok=True)
    site = Site(name="bank", domain="general", task=Task.INSTRUCTION, source="", folder=folder, train_records=1)
    for path in (site.train, site.validation, site.test):
        path.write_text(text)
    return Arms(
        preset=PRESETS["tiny"],
        place=place,
        sites=(site,),
        model=replace(MODEL, digest=base * 32),
        base=BaseModelFolder(folder=place, digest=base * 32, cache=place),
        pool=Pool(place, base_model=place, slots=1),
        say=lambda _: None,
    )


@pytest.mark.parametrize("other", [{"text": "{} \n"}, {"base": "cd"}])
def test_a_folder_with_work_on_other_records_or_of_another_base_model_is_refused(tmp_path: Path, other: Any) -> None:
    """What lies finished there is taken as it is, and would stand in one table with what is not."""
    arms_of(tmp_path).prepare()
    arms_of(tmp_path).prepare()
    with pytest.raises(InvalidArgument, match="another base model or other records"):
        arms_of(tmp_path, **other).prepare()
