"""Adapter files read piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.adapters import ADAPTER_FILE, AdapterLayout, AdapterSpec, FlatFile, LinearLayer, write_adapter_folder
from common.errors import ShapeMismatch

LAYOUT = AdapterSpec(2, 4.0, ("q_proj",)).layout([LinearLayer("layers.0.q_proj", 6, 5)])
VALUES = np.arange(LAYOUT.parameters, dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_adapter_folder(tmp_path, VALUES, LAYOUT, {})
    return tmp_path / ADAPTER_FILE


def test_pieces_of_a_file_are_those_of_its_vector(path):
    flat = FlatFile.open(path, LAYOUT)
    pieces = [flat.read(0, 7), flat.read(7, 7), flat.read(7, LAYOUT.parameters)]
    assert np.array_equal(np.concatenate(pieces), VALUES)


def test_a_file_in_another_layout_is_not_opened(path):
    other = AdapterLayout(LAYOUT.slots[:1])
    with pytest.raises(ShapeMismatch, match="not an adapter of 10 parameters"):
        FlatFile.open(path, other)


def test_elements_that_a_file_does_not_have_are_not_made_up(path):
    flat = FlatFile.open(path, LAYOUT)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ShapeMismatch, match="ends before element"):
        flat.read(0, LAYOUT.parameters)
