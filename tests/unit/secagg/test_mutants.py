"""The table of mutants still fits the source: `make mutants` applies them, this only looks whether it could."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT
from tests.mutants.table import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_its_files_and_they_still_parse(mutant: Mutant, tmp_path: Path):
    for name in {edit.file for edit in mutant.edits}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for edit in mutant.edits:
        edit.apply(tmp_path)
        text = (tmp_path / edit.file).read_text()
        assert text != (ROOT / edit.file).read_text()
        ast.parse(text)


def test_every_test_that_must_kill_a_mutant_exists():
    defined = {}
    for mutant in MUTANTS:
        for killer in mutant.killers:
            file, _, name = killer.partition("::")
            if file not in defined:
                tree = ast.parse((ROOT / file).read_text())
                defined[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in defined[file], f"{mutant.name}: {killer} is gone"


def test_no_two_mutants_have_one_name_and_each_has_a_killer():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.killers and mutant.edits for mutant in MUTANTS)
