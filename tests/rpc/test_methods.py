"""Methods through real masked rounds: what is exact, what FedIT loses, what stays frozen, and what travels."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from common.adapters import ADAPTER_FILE, AdapterLayout, FlatVector, open_flat, unflatten
from common.errors import AuditFailed, InvalidArgument
from common.masking import secagg_plan
from common.secagg import RoundKind
from common.sent import moving_layout, sent_vector
from coordinator import planning
from participant.auditing import audit_round, notes_of
from participant.shelf import AdapterShelf
from tests.rpc.federation import Federation, MadeUpTrainer, federation_in, moving

SITES = ("site-0", "site-1", "site-2")
RECORDS = (100, 40, 70)
CLIP = 0.25
Wide = NDArray[np.float64]


def related(seed: int) -> Callable[[int, AdapterLayout], FlatVector]:
    """Deltas of sites that want something similar: half of it is everybody's, half this site's own.

    As large as the clip lets them be, so that the fixed point's rounding is as small beside them as it gets.
    """

    def delta(round_: int, layout: AdapterLayout) -> FlatVector:
        common = np.random.default_rng([99, round_]).uniform(-CLIP / 2, CLIP / 2, layout.parameters)
        own = np.random.default_rng([seed, round_]).uniform(-CLIP / 2, CLIP / 2, layout.parameters)
        return np.asarray(common + own, dtype=np.float32)

    return delta


@contextmanager
def federation_of(folder: Path, *, rounds: int, fine: bool = True, **settings: Any) -> Iterator[Federation]:
    """Three sites that have played all rounds. fine: lanes of 32 bits, so that the fixed point does not matter."""
    with federation_in(folder) as made, patch.object(planning, "choose_lanes", lambda members: 2 if fine else 4):
        for index, name in enumerate(SITES):
            made.add_site(name, MadeUpTrainer(related(index), records=RECORDS[index]))
        made.create_run(rounds=rounds, element_clip=CLIP, weight_cap=100, **settings)
        made.turn_until(lambda: made.state() == "succeeded")
        yield made


def weights() -> Wide:
    return np.minimum(RECORDS, 100) / np.sum(np.minimum(RECORDS, 100))


def trained(federation: Federation, number: int) -> list[FlatVector]:
    """What each site had trained in a round, as a plaintext reference sees it."""
    base, plan = federation.adapter(federation.round(number)["base_adapter_digest"]), federation.plan()
    moves = moving(plan, number)
    return [base + np.where(moves, federation.sites[name].trainer.delta(number, plan.layout()), 0) for name in SITES]


def product_of(federation: Federation, flat: NDArray[Any], layer: str) -> Wide:
    plan = federation.plan()
    tensors = unflatten(np.asarray(flat, dtype=np.float32), plan.layout())
    (lora,) = (plan.adapter_method().lora_factors(one, tensors) for one in plan.base_model.layers if one.name == layer)
    return lora.b.astype(np.float64) @ lora.a.astype(np.float64)


def product_errors(federation: Federation, number: int) -> list[float]:
    """By layer: how far the published adapter's product is from the mean of the sites' products, relative to it."""
    result = federation.adapter(federation.round(number)["adapter_digest"])
    sites, found = trained(federation, number), []
    for layer in (one.name for one in federation.plan().adapter.adapted(federation.plan().base_model.layers)):
        mean = sum(p * product_of(federation, flat, layer) for p, flat in zip(weights(), sites, strict=True))
        found.append(float(np.linalg.norm(product_of(federation, result, layer) - mean) / np.linalg.norm(mean)))
    return found


@pytest.mark.parametrize(
    ("method", "rounds"), [("ffa_lora", 2), ("rolora", 3), ("core", 2), ("ravan", 2)], ids=lambda value: str(value)
)
def test_the_mean_of_what_an_exact_method_sends_is_the_mean_of_its_updates(tmp_path: Path, method: str, rounds: int):
    with federation_of(tmp_path, rounds=rounds, method=method, rank=2) as federation:
        for number in range(1, rounds + 1):
            assert max(product_errors(federation, number)) <= 1e-6


def test_what_fedit_loses_is_measured_without_seeing_any_site(tmp_path: Path):
    pairs = 64
    # Five standard deviations of what so many random pairs say: each run draws others.
    tolerance = 5 * (2 * pairs) ** -0.5
    with federation_of(tmp_path, rounds=2, product_probes=pairs) as federation:
        for number in (1, 2):
            told = {one["name"]: one["value"] for one in federation.round(number)["metrics"]}["product_error"]
            base = federation.adapter(federation.round(number)["base_adapter_digest"])
            result = federation.adapter(federation.round(number)["adapter_digest"])
            sites, lost, whole = trained(federation, number), 0.0, 0.0
            for layer in (one.name for one in federation.plan().base_model.layers):
                before = product_of(federation, base, layer)
                mean = sum(p * product_of(federation, flat, layer) for p, flat in zip(weights(), sites, strict=True))
                lost += float(np.sum((product_of(federation, result, layer) - mean) ** 2))
                whole += float(np.sum((mean - before) ** 2))
            truth = (lost / whole) ** 0.5
            assert told == pytest.approx(truth, rel=tolerance)
            assert 0.01 < truth < 0.3


def test_the_monitor_says_next_to_nothing_where_sites_agree(tmp_path: Path):
    """Also in steps as coarse as they are by default: what the fixed point rounds is not called a loss.

    A third of the clip: forms of larger updates would be clipped here and there, and that is a loss.
    """

    def agreed(round_: int, layout: AdapterLayout) -> FlatVector:
        return related(0)(round_, layout) / np.float32(3.0)

    with federation_in(tmp_path) as federation:
        for name in SITES:
            federation.add_site(name, MadeUpTrainer(agreed, records=100))
        federation.create_run(rounds=1, element_clip=CLIP, weight_cap=100, product_probes=64)
        federation.turn_until(lambda: federation.state() == "succeeded")
        told = {one["name"]: one["value"] for one in federation.round(1)["metrics"]}["product_error"]
        assert told < 0.005


def test_rolora_moves_one_factor_a_round_and_uploads_no_more_than_that(tmp_path: Path):
    with federation_of(tmp_path, rounds=3, method="rolora", schedule="B,B,A", fine=False) as federation:
        plan = federation.plan()
        masked = secagg_plan(plan, bytes.fromhex(federation.run()["plan_digest"]))
        sizes, factors = [], []
        for number in (1, 2, 3):
            found = federation.round(number)
            base, result = (federation.adapter(found[f"{which}adapter_digest"]) for which in ("base_", ""))
            moves = moving(plan, number)
            assert np.array_equal(base[~moves], result[~moves])
            assert np.count_nonzero(base[moves] != result[moves]) > 0.9 * np.count_nonzero(moves)
            errors, bound = federation.errors(number, SITES)
            assert errors.max() <= bound
            entry = federation.sites["site-0"].journal().round("run", number)
            assert entry is not None
            assert entry.uploaded_bytes == masked.layout(RoundKind.TRAINING, number).bytes
            sizes.append(entry.uploaded_bytes)
            factors.append({tensor.name.split(".")[-2] for tensor in sent_vector(plan, number).tensors})
        assert factors == [{"lora_B"}, {"lora_B"}, {"lora_A"}]
        assert sizes[0] == sizes[1] != sizes[2]


def test_a_site_that_has_the_parent_fetches_what_has_moved_and_one_that_has_not_all(tmp_path: Path):
    with federation_in(tmp_path) as federation:
        for index, name in enumerate(SITES):
            federation.add_site(name, MadeUpTrainer(related(index)))
        federation.create_run(rounds=3, element_clip=CLIP, method="rolora")
        federation.play(1)
        federation.turn_until(lambda: federation.round(2)["state"] == "succeeded")
        late = federation.sites["site-2"]
        shutil.rmtree(late.state / "adapters" / federation.round(3)["base_adapter_digest"], ignore_errors=True)
        shutil.rmtree(late.state / "adapters" / federation.round(2)["base_adapter_digest"])
        federation.turn_until(lambda: federation.state() == "succeeded")

        plan = federation.plan()
        asked = {
            name: [call.get("moved_only", False) for _, call in site.line.attempts["adapter_chunks"]]
            for name, site in federation.sites.items()
        }
        assert asked["site-0"] == [False, True, True, True]
        assert asked["site-2"] == [False, True, False, True]
        for digest in (federation.round(4)["base_adapter_digest"], federation.round(3)["base_adapter_digest"]):
            for site in federation.sites.values():
                held = open_flat(site.state / "adapters" / digest / ADAPTER_FILE, plan.layout())
                assert np.array_equal(held, federation.adapter(digest))

        first, second = (federation.round(number)["base_adapter_digest"] for number in (1, 2))
        size = 4 * sent_vector(plan, 1).parameters
        assert len(b"".join(late.client.adapter_chunks(second, offset=size - 8, moved_only=True))) == 8
        assert b"".join(late.client.adapter_chunks(second, offset=size, moved_only=True)) == b""
        for digest, offset, said in (
            (first, 0, "has moved from nothing"),
            (second, size - 2, "not a multiple of 4"),
            (second, size + 4, f"within the {size} bytes"),
        ):
            with pytest.raises(InvalidArgument, match=said):
                list(late.client.adapter_chunks(digest, offset=offset, moved_only=True))


def test_ffas_a_is_orthonormal_and_the_same_bits_at_every_site_in_every_round(tmp_path: Path):
    with federation_of(tmp_path, rounds=2, method="ffa_lora", fine=False) as federation:
        plan, seen = federation.plan(), set()
        kept = ~moving(plan, 1)
        for name in SITES:
            for digest in (federation.round(2)["base_adapter_digest"], federation.round(2)["adapter_digest"]):
                held = open_flat(federation.sites[name].state / "adapters" / digest / ADAPTER_FILE, plan.layout())
                seen.add(hashlib.sha256(np.array(held)[kept].tobytes()).hexdigest())
        initial = federation.adapter(federation.round(1)["base_adapter_digest"])
        assert seen == {hashlib.sha256(initial[kept].tobytes()).hexdigest()}
        for name, tensor in unflatten(initial, plan.layout()).items():
            if ".lora_A." in name:
                assert np.allclose(tensor @ tensor.T, np.eye(len(tensor)), atol=1e-6)
            else:
                assert not tensor.any()


def test_a_site_that_has_trained_what_is_frozen_is_out_of_the_round_and_the_others_go_on(tmp_path: Path):
    def spoil(work: Any) -> None:
        if work.kind.value == "train":
            mapped = open_flat(work.trained_adapter, work.plan.layout(), writable=True)
            mapped[np.flatnonzero(~moving(work.plan, work.round))[0]] += 1
            mapped.flush()

    with federation_in(tmp_path) as federation:
        for index in range(4):
            trainer = MadeUpTrainer(related(index))
            federation.add_site(f"site-{index}", trainer)
        federation.sites["site-3"].trainer.spoil = spoil
        federation.create_run(rounds=1, element_clip=CLIP, method="ffa_lora")
        found = federation.play(1)
        assert found["state"] == "succeeded"
        assert federation.participations(1)["site-3"] == ("failed", "TRAINING_FAILED")


# --- server optimisers ----------------------------------------------------------------------------------------------


def mean_delta(federation: Federation, number: int) -> Wide:
    base = federation.adapter(federation.round(number)["base_adapter_digest"]).astype(np.float64)
    return np.asarray(sum(p * (one - base) for p, one in zip(weights(), trained(federation, number), strict=True)))


def step_of(federation: Federation, number: int) -> Wide:
    found = federation.round(number)
    base, result = (federation.adapter(found[f"{which}adapter_digest"]).astype(float) for which in ("base_", ""))
    return np.asarray(result - base)


@pytest.mark.parametrize("method", ["fedit", "rolora"])
def test_momentum_is_each_elements_own_over_the_rounds_in_which_it_moves(tmp_path: Path, method: str):
    settings: dict[str, Any] = {
        "method": method,
        "server_optimizer": "fedavgm",
        "beta1": 0.5,
        "server_learning_rate": 0.5,
    }
    with federation_of(tmp_path, rounds=4, **settings) as federation:
        momentum = np.zeros(federation.plan().layout().parameters)
        for number in range(1, 5):
            moves = moving(federation.plan(), number)
            momentum = np.where(moves, 0.5 * momentum + mean_delta(federation, number), momentum)
            assert step_of(federation, number) == pytest.approx(np.where(moves, 0.5 * momentum, 0), abs=1e-6)
        assert np.count_nonzero(momentum) > 0.9 * momentum.size


def test_adaptive_state_goes_on_from_the_adapter_that_it_belongs_to_also_after_a_rollback(tmp_path: Path):
    eta, b1, b2, tau = 0.1, 0.5, 0.9, 0.01
    with federation_in(tmp_path) as federation, patch.object(planning, "choose_lanes", lambda members: 2):
        for index, name in enumerate(SITES):
            federation.add_site(name, MadeUpTrainer(related(index), records=RECORDS[index]))
        settings: dict[str, Any] = {
            "server_optimizer": "fedadam",
            "server_learning_rate": eta,
            "beta1": b1,
            "beta2": b2,
            "tau": tau,
        }
        federation.create_run(rounds=4, element_clip=CLIP, weight_cap=100, method="ffa_lora", **settings)
        federation.play(1)
        federation.play(2)
        federation.admin.pause_run("runs/run")
        federation.play(3)
        first = federation.round(1)["adapter_digest"]
        federation.admin.roll_back_run("runs/run", adapter_digest=first)
        federation.admin.resume_run("runs/run")
        federation.play(4)

        def stepped(state: tuple[Wide, Wide], number: int) -> tuple[Wide, Wide]:
            delta = mean_delta(federation, number)
            m, v = b1 * state[0] + (1 - b1) * delta, b2 * state[1] + (1 - b2) * delta**2
            expected = np.where(moving(federation.plan(), number), eta * m / (np.sqrt(v) + tau), 0)
            assert step_of(federation, number) == pytest.approx(expected, abs=2e-6)
            return m, v

        size = federation.plan().layout().parameters
        one = stepped((np.zeros(size), np.full(size, tau**2)), 1)
        stepped(stepped(one, 2), 3)
        assert federation.round(4)["base_adapter_digest"] == first
        stepped(one, 4)

        kept = federation.blobs(f"optimizer/run/{first}")
        assert [key.rsplit("/", 1)[-1] for key in kept] == ["momentum", "squares"]
        layout = moving_layout(federation.plan())
        assert layout.parameters < size


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_a_run_that_is_over_keeps_no_state_of_its_server_optimiser(tmp_path: Path, end: str):
    with federation_in(tmp_path) as federation:
        for index, name in enumerate(SITES):
            federation.add_site(name, MadeUpTrainer(related(index), records=RECORDS[index]))
        federation.create_run(rounds=3, element_clip=CLIP, weight_cap=100, server_optimizer="fedadam")
        federation.play(1)
        assert federation.blobs("optimizer/run")
        if end == "cancelled":
            federation.admin.cancel_run("runs/run", reason="enough")
        federation.turn_until(lambda: federation.state() == end)
        federation.turn()

        assert federation.blobs("optimizer") == []
        assert federation.blobs(f"adapters/{federation.round(1)['adapter_digest']}")


def test_an_audit_recomputes_a_stateful_step_where_it_can_and_says_where_it_cannot(tmp_path: Path):
    with federation_of(tmp_path, rounds=2, method="rolora", server_optimizer="fedyogi", fine=False) as federation:
        site = federation.sites["site-1"]
        shelf = AdapterShelf(site.state / "audited", lambda: site.client)

        def audit(number: int) -> Any:
            journal = site.journal()
            try:
                notes = notes_of(journal, run="run", round_=number, participant="site-1")
            finally:
                journal.close()
            return audit_round(
                notes, site.client, choose=range, fetch=lambda digest: shelf.fetch(digest, federation.plan())
            )

        first, second = audit(1), audit(2)
        assert first.not_recomputed == ""
        assert "fedyogi moves the adapter by a state of all rounds before" in second.not_recomputed
        assert second.metrics

        nudged = shelf.path(federation.round(2)["adapter_digest"]) / ADAPTER_FILE
        held = open_flat(nudged, federation.plan().layout(), writable=True)
        held[np.flatnonzero(~moving(federation.plan(), 2))[-1]] += 1
        held.flush()
        with pytest.raises(AuditFailed, match="keeps frozen"):
            audit(2)
