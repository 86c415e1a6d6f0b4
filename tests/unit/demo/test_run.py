"""The demo's run where it does not go well before training begins."""

import pytest

from demo import run
from demo.run import DemoFailed, Stopwatch


class Federation:
    """Answers for one run, one after the other; the last one stays."""

    def __init__(self, tmp_path, *members):
        self.folder = tmp_path
        self._answers = list(members)
        self.asked = 0

    @property
    def admin(self):
        return self

    def require_running(self):
        self.asked += 1

    def run(self, name):
        assert name == "runs/demo"
        return {"members": self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]}


@pytest.fixture
def federation_with(tmp_path):
    """Makes a federation whose run has these members, look after look."""
    return lambda *members: Federation(tmp_path, *members)


def joined(name):
    return {"participant": f"participants/{name}", "joined": True, "message": ""}


def test_a_site_that_declines_the_plan_ends_the_demo_with_its_reasons(federation_with):
    refusal = {"participant": "participants/clinic", "joined": False, "message": "most_rank: 16 is over 8"}
    federation = federation_with([joined("desk")], [joined("desk"), refusal])
    with pytest.raises(DemoFailed, match=r"(?s)declined.*participants/clinic: most_rank: 16 is over 8"):
        run._wait_until_joined(federation, 3)


def test_a_site_that_never_answers_is_missed_by_name_of_those_who_did(federation_with, monkeypatch):
    monkeypatch.setattr(run, "JOIN_SECONDS", 0.0)
    federation = federation_with([joined("desk"), joined("clinic")])
    with pytest.raises(DemoFailed, match=r"only participants/desk, participants/clinic has joined"):
        run._wait_until_joined(federation, 3)


def test_processes_are_looked_at_before_every_question(federation_with):
    federation = federation_with([joined("desk")], [joined("desk"), joined("clinic"), joined("home")])
    run._wait_until_joined(federation, 3)
    assert federation.asked == 2


def test_seconds_are_kept_in_the_order_of_happening():
    watch = Stopwatch()
    for name in ("prepare", "enrol", "rounds"):
        with watch.measure(name):
            pass
    assert list(watch.seconds) == ["prepare", "enrol", "rounds"]
    assert all(seconds >= 0 for seconds in watch.seconds.values())
