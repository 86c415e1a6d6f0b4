"""Rounds' figures in a real TensorBoard folder and a real MLflow database, as the command brings them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from common.errors import ConfigInvalid
from coordinator.__main__ import main
from coordinator.tracking.board import ABOUT, TensorBoard
from coordinator.tracking.points import Subject
from tests.rpc.federation import Federation, federation_in


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Federation]:
    with federation_in(tmp_path_factory.mktemp("tracked")) as lab:
        lab.add_sites(3, loss=lambda round_: 3.0 - round_ / 10)
        lab.create_run(rounds=3)
        for number in (1, 2):
            assert lab.play(number)["state"] == "succeeded"
        yield lab


@pytest.fixture
def track(lab, tmp_path, capsys):
    papers = {"cert": lab._operator.certificate_chain, "key": lab._operator.key, "ca": lab._operator.trust_bundle}
    flags = ["--address", lab.addresses.admin]
    for name, content in papers.items():
        (tmp_path / name).write_bytes(content)
        flags += [f"--{name}", str(tmp_path / name)]

    def run(to: str, *more: str) -> dict[str, object]:
        code = main(["track", "--run", "run", "--to", to, "--json", *flags, *more])
        answer = json.loads(capsys.readouterr().out)
        return {"code": code, **answer}

    return run


def scalars(folder) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    read = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    read.Reload()
    return {
        tag: {event.step: float(make_ndarray(event.tensor_proto)) for event in read.Tensors(tag)}
        for tag in read.Tags()["tensors"]
    }


def published(lab: Federation, name: str) -> dict[int, float]:
    return {
        row["number"]: metric["value"]
        for row in lab.admin.rounds("runs/run")
        if row["state"] == "succeeded"
        for metric in row["metrics"]
        if metric["name"] == name
    }


def test_tensorboard_has_each_round_once_however_often_it_is_brought(lab, track, tmp_path):
    to = f"tensorboard:{tmp_path / 'board'}"
    assert track(to) == {"code": 0, "run": "runs/run", "to": to, "rounds_sent": 2, "state": "running"}
    assert track(to)["rounds_sent"] == 0
    found = scalars(tmp_path / "board" / "lab" / "run")
    assert found["heldout_loss"] == pytest.approx(published(lab, "heldout_loss"))
    assert found["cohort"] == {1: 3.0, 2: 3.0}
    about = json.loads((tmp_path / "board" / "lab" / "run" / ABOUT).read_text())
    assert about["settings"]["training.learning_rate"] == "0.001"


def test_mlflow_has_the_figures_the_plan_and_how_the_run_stands(lab, track, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert track(f"mlflow:{uri}")["rounds_sent"] == 2
    assert track(f"mlflow:{uri}")["rounds_sent"] == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("accord/lab")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "heldout_loss")
    assert {point.step: point.value for point in history} == pytest.approx(published(lab, "heldout_loss"))
    assert run.info.run_name == "run"
    assert run.data.tags["accord.state"] == "running"
    assert run.data.params["training.learning_rate"] == "0.001"


def test_following_ends_with_the_run_and_has_its_last_round(lab, track, tmp_path):
    for number in (3, 4):
        lab.play(number)
    assert lab.state() == "succeeded"
    to = f"tensorboard:{tmp_path / 'board'}"
    assert track(to, "--follow") == {"code": 0, "run": "runs/run", "to": to, "rounds_sent": 4, "state": "succeeded"}
    assert set(scalars(tmp_path / "board" / "lab" / "run")["heldout_loss"]) == {1, 2, 3, 4}


def test_an_unknown_tracker_is_told_what_there_is(track):
    refused = track("wandb:x")
    assert refused["code"] != 0
    assert "tensorboard:FOLDER" in refused["error"]["message"]


def test_without_the_extra_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    subject = Subject("lab", "run", "running", "", "", {})
    with pytest.raises(ConfigInvalid, match=r"pip install 'accord\[tensorboard\]'"):
        TensorBoard(tmp_path, subject)
