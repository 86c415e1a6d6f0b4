"""Mean of what is sent against mean of the updates, for methods that promise that both are the same."""

from __future__ import annotations

import numpy as np
import pytest

from common.adapters import AdapterSpec, LinearLayer
from common.errors import PlanInvalid
from common.methods import METHODS, Method, adapter_method, tensor_name

# The last one is SmolLM2-135M's k_proj: the narrowest layer of a model that is really tuned.
LAYERS = (
    LinearLayer("layers.0.q_proj", 48, 32),
    LinearLayer("layers.0.down_proj", 32, 56),
    LinearLayer("layers.0.k_proj", 192, 576),
)
WEIGHTS = np.array([0.5, 0.3, 0.15, 0.05])


def spec(rank=6, alpha=12.0):
    return AdapterSpec(rank=rank, alpha=alpha, target_modules=("q_proj", "k_proj", "down_proj"))


def tensors_of(method, *, seed=3):
    found = method.initial(LAYERS, seed=seed)
    return {slot.name: values.reshape(slot.shape) for slot, values in found}


def moved(method, start, *, turn, seed):
    """What a site has after training: every sent tensor moved by as much as the others'."""
    draw = np.random.default_rng(seed)
    return {
        name: (tensor + 0.3 * draw.standard_normal(tensor.shape)).astype(np.float32)
        if method.is_sent(name, turn)
        else tensor
        for name, tensor in start.items()
    }


def product(method, layer, tensors):
    """Delta W of the exported factors, in float64."""
    found, shape = method.lora_factors(layer, tensors), method.lora_spec
    assert found.a.shape == (shape.rank, layer.in_features)
    assert found.b.shape == (layer.out_features, shape.rank)
    return shape.alpha / shape.rank * (found.b.astype(np.float64) @ found.a.astype(np.float64))


def core_product(layer, tensors, *, scale):
    a, b, r = (tensors[tensor_name(layer, name)].astype(np.float64) for name in ("core_A", "core_B", "core_R"))
    return scale * b @ r @ a


def ravan_product(layer, tensors, *, heads, rank, scale):
    a, b, h = (tensors[tensor_name(layer, name)].astype(np.float64) for name in ("ravan_A", "ravan_B", "ravan_H"))
    total = np.zeros((layer.out_features, layer.in_features))
    for j in range(heads):
        head = slice(j * rank, (j + 1) * rank)
        total += b[:, head] @ h[head] @ a[head]
    return scale * total


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def mean_of(sites):
    return {
        name: np.asarray(sum(w * site[name].astype(np.float64) for w, site in zip(WEIGHTS, sites, strict=True)))
        for name in sites[0]
    }


@pytest.mark.parametrize("name", ["ffa_lora", "rolora", "core", "ravan"])
def test_the_mean_of_what_is_sent_is_the_mean_of_the_updates(name):
    method = adapter_method(Method(name=name), spec())
    start = tensors_of(method)
    if name == "rolora":  # its second turn begins with a B that is not zero
        start = moved(method, start, turn=0, seed=99)
    for turn in set(method.schedule):
        sites = [moved(method, start, turn=turn, seed=seed) for seed in range(len(WEIGHTS))]
        mean = {tensor: values.astype(np.float32) for tensor, values in mean_of(sites).items()}
        for layer in LAYERS:
            wanted = sum(w * product(method, layer, site) for w, site in zip(WEIGHTS, sites, strict=True))
            assert relative(product(method, layer, mean), wanted) < 1e-6


def test_fedit_is_off_by_the_covariance_of_its_factors():
    method = adapter_method(Method(), spec())
    sites = [moved(method, tensors_of(method), turn=0, seed=seed) for seed in range(len(WEIGHTS))]
    mean = mean_of(sites)
    for layer in LAYERS:
        names = tensor_name(layer, "lora_A"), tensor_name(layer, "lora_B")
        covariance = sum(
            w * (site[names[1]] - mean[names[1]]) @ (site[names[0]] - mean[names[0]])
            for w, site in zip(WEIGHTS, sites, strict=True)
        )
        wanted = sum(w * product(method, layer, site) for w, site in zip(WEIGHTS, sites, strict=True))
        found = product(method, layer, mean)
        assert relative(found, wanted) > 0.1
        np.testing.assert_allclose(wanted - found, 2.0 * covariance, atol=1e-5)


def test_averaging_ravans_scalars_and_heads_apart_is_off():
    method = adapter_method(Method(name="ravan", heads=3), spec())
    start = tensors_of(method)
    draw = np.random.default_rng(7)
    sites = [moved(method, start, turn=0, seed=seed) for seed in range(len(WEIGHTS))]
    scales = [draw.uniform(0.4, 1.6, size=3) for _ in WEIGHTS]
    mean_scale = sum(w * s for w, s in zip(WEIGHTS, scales, strict=True))
    for layer in LAYERS:
        name = tensor_name(layer, "ravan_H")

        def folded(tensors, s, name=name):
            return {**tensors, name: (tensors[name] * np.repeat(s, 6)[:, None]).astype(np.float32)}

        updates = [product(method, layer, folded(site, s)) for site, s in zip(sites, scales, strict=True)]
        wanted = sum(w * update for w, update in zip(WEIGHTS, updates, strict=True))
        together = mean_of([folded(site, s) for site, s in zip(sites, scales, strict=True)])
        apart = folded(mean_of(sites), mean_scale)
        assert relative(product(method, layer, together), wanted) < 1e-6
        assert relative(product(method, layer, apart), wanted) > 0.05


def test_a_core_is_exported_as_the_lora_that_it_is():
    method = adapter_method(Method(name="core"), spec())
    site = moved(method, tensors_of(method), turn=0, seed=1)
    for layer in LAYERS:
        assert relative(product(method, layer, site), core_product(layer, site, scale=2.0)) < 1e-6


def test_ravans_heads_are_exported_as_one_lora_of_all_their_ranks():
    method = adapter_method(Method(name="ravan", heads=3), spec())
    site = moved(method, tensors_of(method), turn=0, seed=1)
    assert method.lora_spec == AdapterSpec(rank=18, alpha=36.0, target_modules=spec().target_modules)
    for layer in LAYERS:
        wanted = ravan_product(layer, site, heads=3, rank=6, scale=2.0)
        assert relative(product(method, layer, site), wanted) < 1e-6


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_new_adapter_changes_nothing_and_its_tensors_are_the_layouts(name):
    method = adapter_method(Method(name=name), spec())
    tensors = tensors_of(method)
    layout = method.layout(LAYERS)
    assert {slot.name: slot.shape for slot in layout.slots} == {name: tensor.shape for name, tensor in tensors.items()}
    assert [slot.offset for slot in layout.slots] == list(
        np.cumsum([0, *(slot.size for slot in layout.slots[:-1])]),
    )
    for layer in LAYERS:
        assert not product(method, layer, tensors).any()


@pytest.mark.parametrize(("name", "bases"), [("core", ("core_A", "core_B")), ("ravan", ("ravan_A", "ravan_B"))])
def test_frozen_bases_are_orthonormal_over_all_heads(name, bases):
    method = adapter_method(Method(name=name), spec())
    tensors = tensors_of(method)
    for layer in LAYERS:
        a, b = (tensors[tensor_name(layer, base)] for base in bases)
        np.testing.assert_allclose(a @ a.T, np.eye(len(a)), atol=1e-6)
        np.testing.assert_allclose(b.T @ b, np.eye(len(a)), atol=1e-6)
        assert not method.is_sent(tensor_name(layer, bases[0]), 0)
        assert not method.is_sent(tensor_name(layer, bases[1]), 0)


def test_a_core_of_rank_32_sends_less_than_a_tenth_of_what_lora_of_rank_8_sends():
    # Shapes of one decoder layer of SmolLM2-135M.
    sides = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576), "g": (1536, 576), "d": (576, 1536)}
    layers = [LinearLayer(f"layers.0.{name}", *side) for name, side in sides.items()]
    wide = AdapterSpec(rank=32, alpha=32.0, target_modules=tuple(sides))
    core, lora = adapter_method(Method(name="core"), wide), adapter_method(Method(), AdapterSpec(8, 16.0, tuple(sides)))

    def sent(method):
        return sum(slot.size for slot in method.layout(layers).slots if method.is_sent(slot.name, 0))

    assert sent(core) == len(layers) * 32 * 32
    assert sent(core) / sent(lora) < 0.1


def test_a_core_wider_than_a_layer_is_refused():
    method = adapter_method(Method(name="core"), spec(rank=33))
    with pytest.raises(PlanInvalid, match=r"rank 33 is larger than the smaller side of layers\.0\.q_proj \(48 x 32\)"):
        method.layout(LAYERS)


def test_heads_that_cannot_be_orthogonal_are_refused():
    method = adapter_method(Method(name="ravan", heads=6), spec())
    with pytest.raises(PlanInvalid, match="6 heads of rank 6 are 36 wide, more than the smaller side"):
        method.layout(LAYERS)
    assert adapter_method(Method(name="ravan", heads=5), spec()).layout(LAYERS).parameters > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "core", "heads": 2}, "method.heads is ravan's"),
        ({"name": "ravan", "heads": 65}, "it must be 1 to 64"),
        ({"name": "core", "schedule": ("A", "B")}, "rolora's: core sends the same in every round"),
        ({"name": "core", "product_probes": 8}, "core is exact"),
        ({"name": "rolora", "alignment": 0.5}, "rolora leaves one frozen"),
        ({"name": "fedit", "alignment": 1.5}, "from 0 .off. to 1"),
        ({"name": "fedit", "proximal_weight": -1.0}, "FedProx's mu"),
        ({"name": "fedit", "proximal_weight": float("nan")}, "FedProx's mu"),
        ({"name": "rolora", "control_variates": True}, "not rolora's"),
        ({"name": "ravan", "control_variates": True}, "not ravan's"),
        ({"name": "core", "control_variates": True, "server_optimizer": "fedadam"}, "with fedadam they do not differ"),
        ({"name": "fedit", "alignment": 0.5, "control_variates": True}, "do not go together"),
        ({"name": "lora_fair"}, "'lora_fair' is not known; known: fedit, ffa_lora, rolora, core, ravan"),
    ],
)
def test_a_setting_that_does_not_fit_the_method_is_refused(settings, said):
    with pytest.raises(PlanInvalid, match=said):
        adapter_method(Method(**settings), spec())
