"""The three attacks on the client side of Flower's SecAgg+, each with the functions that a Flower client runs.

Runs in a Python that has `flwr` and nothing of Accord: `python -m benchmarks.attacks --flower PYTHON` starts it. The
server's part is played here, with lies; the clients are `flwr.client.mod.secure_aggregation.secaggplus_mod`. Prints a
JSON list. A small update is enough: masks are taken off to the bit or not at all.
"""

from __future__ import annotations

import importlib
import json
import logging
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.peers.flower_clients import CLIP, EXAMPLES, MOD, clients_after_key_setup, common, mod, new_client

prg: Any = importlib.import_module("flwr.common.secure_aggregation.secaggplus_utils").pseudo_rand_gen
shamir: Any = importlib.import_module("flwr.common.secure_aggregation.crypto.shamir")
symmetric: Any = importlib.import_module("flwr.common.secure_aggregation.crypto.symmetric_encryption")
quantization: Any = importlib.import_module("flwr.common.secure_aggregation.quantization")

PARAMETERS = 65536
CLIENTS = 5
VICTIM = 1
THRESHOLD = 4
TARGET = 1 << 16


def update(node: int) -> Any:
    return (np.random.default_rng(node).standard_normal(PARAMETERS) * CLIP / 5).astype(np.float32)


def masked(state: Any, sources: list[int], ciphertexts: list[bytes]) -> list[Any]:
    parameters = common.ndarrays_to_parameters([update(state.nid)])
    answer = mod._collect_masked_vectors(state, {"srcs": sources, "ctxts": ciphertexts}, EXAMPLES, parameters)
    return [common.bytes_to_ndarray(part) for part in answer["masked_params"]]


def federation(threshold: int) -> tuple[dict[int, Any], dict[int, list[bytes]], dict[int, list[Any]]]:
    """Clients after their uploads, their public keys, their uploads; nobody has lied yet."""
    states, public, boxes = clients_after_key_setup(CLIENTS, threshold=threshold, target_range=TARGET)
    uploads = {node: masked(state, boxes[node]["srcs"], boxes[node]["ctxts"]) for node, state in states.items()}
    return states, public, uploads


def unmasked(upload: list[Any], *, rd_seed: bytes, sk1: Any, others: dict[int, bytes]) -> Any:
    """The victim's upload less its self mask and its pair masks with `others` (first public keys by node)."""
    shapes = [part.shape for part in upload]
    total = [part.astype(np.int64) - mask for part, mask in zip(upload, prg(rd_seed, MOD, shapes), strict=True)]
    for node, key in others.items():
        seed = symmetric_key(sk1, key)
        sign = 1 if node < VICTIM else -1
        total = [part - sign * mask for part, mask in zip(total, prg(seed, MOD, shapes), strict=True)]
    plain = [part % MOD for part in total]
    return quantization.dequantize(plain[1:], CLIP, TARGET)[0]


def symmetric_key(private: Any, public: bytes) -> bytes:
    found: bytes = symmetric.generate_shared_key(private, mod.bytes_to_public_key(public))
    return found


def finding(attack: str, answers: list[str], attempt: str, recovered: Any) -> dict[str, Any]:
    found = float(np.corrcoef(recovered, update(VICTIM))[0, 1])
    return {
        "version": version("flwr"),
        "attack": attack,
        "answers": answers,
        "attempt": attempt,
        "correlation": found,
        "has_learned": abs(found) > 0.9,
    }


def alive_and_dead() -> dict[str, Any]:
    states, public, uploads = federation(THRESHOLD)
    everyone = sorted(states)
    rd_shares, sk_shares, answers = [], [], []
    for node in [node for node in everyone if node != VICTIM]:
        answer = mod._unmask(states[node], {"active_nids": everyone, "dead_nids": [VICTIM]})
        pairs = list(zip(answer["nids"], answer["shares"], strict=True))
        rd_shares.append(next(share for owner, share in pairs if owner == VICTIM))
        sk_shares.append(next(share for owner, share in reversed(pairs) if owner == VICTIM))
        answers.append(f"client {node} sent both shares of client {VICTIM} in one message")
    recovered = unmasked(
        uploads[VICTIM],
        rd_seed=shamir.combine_shares(rd_shares),
        sk1=mod.bytes_to_private_key(shamir.combine_shares(sk_shares)),
        others={node: pair[0] for node, pair in public.items() if node != VICTIM},
    )
    attempt = "self mask and all pair masks taken off, from the shares of four unmodified clients"
    return finding(f"client {VICTIM} is alive and dead at once", answers, attempt, recovered)


def alone_with_threshold_one() -> dict[str, Any]:
    state, found = new_client(VICTIM, clients=1, threshold=1, target_range=TARGET)
    mod._share_keys(state, {str(VICTIM): [found["pk1"], found["pk2"]]})
    upload = masked(state, [], [])
    answer = mod._unmask(state, {"active_nids": [VICTIM], "dead_nids": []})
    answers = ["took threshold 1 and a list of one client", "masked its update", "opened its own self mask's seed"]
    recovered = unmasked(upload, rd_seed=shamir.combine_shares(answer["shares"]), sk1=None, others={})
    attempt = "the self mask taken off, from the one share that the victim sent"
    return finding(f"client {VICTIM} alone, threshold 1", answers, attempt, recovered)


def invented_neighbours() -> dict[str, Any]:
    """Four neighbours whose keys the server has made. They hold the victim's shares as real ones would."""
    state, found = new_client(VICTIM, clients=CLIENTS, threshold=THRESHOLD, target_range=TARGET)
    public = {VICTIM: (found["pk1"], found["pk2"])}
    invented = {}
    for node in range(2, CLIENTS + 1):
        invented[node], keys_of = new_client(node, clients=CLIENTS, threshold=THRESHOLD, target_range=TARGET)
        public[node] = (keys_of["pk1"], keys_of["pk2"])
    named = {str(node): list(pair) for node, pair in public.items()}
    dealt = mod._share_keys(state, named)
    boxes = []
    rd_shares, sk_shares = [], []
    for node, box in zip(dealt["dsts"], dealt["ctxts"], strict=True):
        answer = mod._share_keys(invented[node], named)
        boxes.append((node, answer["ctxts"][answer["dsts"].index(VICTIM)]))
        opened = symmetric.decrypt(invented[node].ss2_dict[VICTIM], box)
        _, _, rd_share, sk_share = mod.share_keys_plaintext_separate(opened)
        rd_shares.append(rd_share)
        sk_shares.append(sk_share)
    upload = masked(state, [node for node, _ in boxes], [box for _, box in boxes])
    recovered = unmasked(
        upload,
        rd_seed=shamir.combine_shares(rd_shares),
        sk1=mod.bytes_to_private_key(shamir.combine_shares(sk_shares)),
        others={node: pair[0] for node, pair in public.items() if node != VICTIM},
    )
    answers = [
        "took the keys of four clients that the server invented",
        "sealed its shares to them",
        "masked its update",
    ]
    attempt = "self mask and all pair masks taken off, from the shares that were sealed to the invented clients"
    return finding("invented neighbours", answers, attempt, recovered)


def main() -> None:
    logging.disable(logging.CRITICAL)
    print(json.dumps([alive_and_dead(), alone_with_threshold_one(), invented_neighbours()]))


if __name__ == "__main__":
    main()
