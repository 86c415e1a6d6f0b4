"""A run of an MLflow server, or of a database that MLflow knows: figures as metrics, the plan as parameters.

Nothing is sent to anybody but the store that is named: MLflow's own reports of use are off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

from common.errors import ConfigInvalid, Unavailable
from coordinator.tracking.points import OVER, SUCCEEDED, Point, Subject

RUN_TAG: Final = "accord.run"
_PROBE: Final = "survivors"  # a figure that every succeeded round has
_MOST_PARAMETERS: Final = 100  # of one request


class MlFlow:
    """A `Tracker`. One MLflow run for each run of Accord, in the experiment "accord/FEDERATION"."""

    def __init__(self, uri: str, subject: Subject) -> None:
        """Raises ConfigInvalid without MLflow, Unavailable if it cannot be asked or does not take the URI."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise ConfigInvalid("MLflow is not installed: pip install 'accord[mlflow]'") from error
        self._metric, self._param, self._failure = Metric, Param, MlflowException
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            self._run = self._find_or_make(subject)
            history = self._client.get_metric_history(self._run, _PROBE)
        except MlflowException as error:
            raise Unavailable(f"MLflow at {uri.partition('@')[2] or uri}: {error.message}") from error
        self._known = {point.step for point in history}

    def known_steps(self) -> frozenset[int]:
        return frozenset(self._known)

    def add(self, points: Iterable[Point]) -> None:
        for point in points:
            if point.step in self._known:
                continue
            at = int(point.at.timestamp() * 1000)
            # The probe goes last: a point that was broken off is sent again.
            names = sorted(point.figures, key=lambda name: (name == _PROBE, name))
            metrics = [self._metric(name, point.figures[name], at, point.step) for name in names]
            self._asked(lambda metrics=metrics: self._client.log_batch(self._run, metrics=metrics))
            self._known.add(point.step)

    def describe(self, subject: Subject) -> None:
        tags = {
            "accord.state": subject.state,
            "accord.plan_digest": subject.plan_digest,
            "accord.accepted_adapter": subject.accepted_adapter,
        }
        for name, value in tags.items():
            self._asked(lambda name=name, value=value: self._client.set_tag(self._run, name, value))
        parameters = [self._param(name, value) for name, value in sorted(subject.settings.items()) if value]
        for begin in range(0, len(parameters), _MOST_PARAMETERS):
            part = parameters[begin : begin + _MOST_PARAMETERS]
            self._asked(lambda part=part: self._client.log_batch(self._run, params=part))
        if subject.state in OVER:
            status = "FINISHED" if subject.state == SUCCEEDED else "FAILED"
            self._asked(lambda: self._client.set_terminated(self._run, status))

    def close(self) -> None:
        """Nothing is held open."""

    def _find_or_make(self, subject: Subject) -> str:
        name = f"accord/{subject.federation}"
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        found = self._client.search_runs([number], filter_string=f"tags.`{RUN_TAG}` = '{subject.run}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        made = self._client.create_run(number, run_name=subject.run, tags={RUN_TAG: subject.run})
        return str(made.info.run_id)

    def _asked(self, call: Any) -> None:
        try:
            call()
        except self._failure as error:
            raise Unavailable(f"MLflow: {error.message}") from error
