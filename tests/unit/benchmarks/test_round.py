"""What the round benchmark refuses before it starts a federation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import round as benchmark


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--participants", "2"), "at least 3 participants"),
        (("--rounds", "1"), "at least 2 rounds"),
        (("--mebibytes", "nan"), "a number above zero"),
        (("--folder", str(Path(__file__).parent)), "is not empty"),
    ],
)
def test_nonsense_is_refused_in_words_before_anything_is_started(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["round", *arguments])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
