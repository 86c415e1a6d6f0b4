from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common import basemodel
from common.adapters import ADAPTER_FILE, AdapterLayout, open_flat
from common.instructions import Task, chat_instruction_set
from participant.training.data import Exchange, Record
from participant.training.model import AdaptedModel, load_model
from participant.training.tokens import Encoder, load_tokenizer
from tests.tiny_model import TINY_SPEC, make_tiny_adapter, make_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny_folder):
    return load_tokenizer(tiny_folder)


@pytest.fixture(scope="session")
def layout(tiny_folder) -> AdapterLayout:
    return TINY_SPEC.layout(basemodel.describe(tiny_folder).layers)


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory, tiny_folder) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "global"
    make_tiny_adapter(folder, tiny_folder)
    return folder


@pytest.fixture
def adapted(tiny_folder, layout, adapter_folder) -> AdaptedModel:
    torch.set_num_threads(1)
    return load_model(
        tiny_folder,
        spec=TINY_SPEC,
        layout=layout,
        start=open_flat(adapter_folder / ADAPTER_FILE, layout),
        device=torch.device("cpu"),
        precision=torch.float32,
    )


@pytest.fixture
def moved(adapted):
    """A model whose adapter does something: as it is first, its B factors are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for factor in adapted.factors.values():
            factor.add_(0.2 * torch.randn(factor.shape, generator=generator))
    return adapted


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer, chat_instruction_set(), max_length=96)


@pytest.fixture
def records(encoder):
    colours = [("sky", "blue"), ("grass", "green"), ("blood", "red"), ("leaf", "green"), ("sea", "deep blue")]
    return [
        encoder.encode(
            Record(n, "g", Task.INSTRUCTION, Exchange("Name the colour.", f"{thing} {n}", colour), f"{n:02x}")
        )
        for n, (thing, colour) in enumerate(colours * 3)
    ]
