"""The mutants: one small wrong change of the masking each, and the tests that must fail of it.

Old texts are exact and occur once in their file. Where a line has been rewritten, write its mutant anew: the change
stays wrong in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

CORE: Final = "common/secagg/"
UNIT: Final = "tests/unit/secagg/"
GRAPH: Final = UNIT + "test_graph.py::"
DESK: Final = "tests/unit/participant/test_desk_deaths.py::"
MASKING_DESK: Final = "tests/unit/participant/test_masking_desk.py::"
UPDATES: Final = "tests/unit/test_instruction_updates.py::"
GUARD: Final = "tests/unit/test_guard.py::"
VECTORS: Final = "tests/vectors/"

STRUCTURE: Final = (
    UNIT + "test_parts.py::test_a_masked_update_is_the_update_and_exactly_one_stream_for_each_partner_and_itself"
)
RECORDED_UPLOAD: Final = (
    VECTORS + "test_secagg_transcript.py::test_the_recorded_update_is_packed_and_masked_to_the_recorded_chunks"
)
EXACT_SUM: Final = UNIT + "test_protocol.py::test_dropped_members_that_are_online_help_to_open_the_sum"
UNBIASED: Final = UNIT + "test_packing.py::test_rounding_is_unbiased"


@dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        """Raises LookupError unless the old text stands in the file exactly once."""
        path = tree / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise LookupError(f"{self.file} holds {self.old!r} {text.count(self.old)} times")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Mutant:
    """killers: tests that must fail, each of them; node ids without parameters."""

    name: str
    edits: tuple[Edit, ...]
    killers: tuple[str, ...]


def mutant(name: str, *edits: Edit, killers: tuple[str, ...]) -> Mutant:
    return Mutant(name, edits, killers)


def round_(old: str, new: str) -> Edit:
    return Edit(CORE + "participant_round.py", old, new)


def epoch(old: str, new: str) -> Edit:
    return Edit(CORE + "participant_epoch.py", old, new)


def context(old: str, new: str) -> Edit:
    return Edit(CORE + "round_context.py", old, new)


def unmask(old: str, new: str) -> Edit:
    return Edit(CORE + "unmask.py", old, new)


def hashing(old: str, new: str) -> Edit:
    return Edit(CORE + "hashing.py", old, new)


def packing(old: str, new: str) -> Edit:
    return Edit(CORE + "packing.py", old, new)


def desk(old: str, new: str) -> Edit:
    return Edit("participant/masking.py", old, new)


SWAPPED_SIGNS: Final = (
    round_("items() if self.index < other)", "items() if self.index > other)"),
    round_("items() if self.index > other]", "items() if self.index < other]"),
)
SEND_COMMIT: Final = "        self._client().commit_survivors(entry.run, entry.round, bound.message)\n"
JOURNAL_COMMIT: Final = (
    "        if entry.phase is not RoundPhase.BOUND:\n"
    "            self._journal.put_round(self._changed(entry, phase=RoundPhase.BOUND, state=bound.to_bytes()))"
    "\n"
)
MERSENNE_TWISTER: Final = """
class AESGCM:
    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt_into(self, nonce, data, associated_data, buffer) -> int:
        seed = list(self._key + nonce)
        buffer[: len(data)] = np.random.Generator(np.random.MT19937(seed)).bytes(len(data))
        return len(buffer)
"""
FLOAT_ROUNDING: Final = (
    "        exact = scaled.astype(np.float32) / np.float32(1 << self._fraction) + np.float32(self._limit)\n"
    "        exact += random.astype(np.float32) / np.float32(1 << FRACTION_BITS_CAP)\n"
    '        np.copyto(integers, exact, casting="unsafe")\n'
)
INTEGER_ROUNDING: Final = (
    "        scaled += (self._limit << self._fraction) + 0.5\n"
    '        np.copyto(integers, scaled, casting="unsafe")\n'
    "        integers += random >> self._unused_bits if self._unused_bits else random\n"
    "        integers >>= self._fraction\n"
)
ADD_RANDOM: Final = "        integers += random >> self._unused_bits if self._unused_bits else random\n"

MUTANTS: Final = (
    # --- masks ---
    mutant(
        "the self mask is omitted",
        round_("plus = [self.self_seed, *(", "plus = [*("),
        killers=(STRUCTURE, EXACT_SUM),
    ),
    mutant(
        "the self mask is omitted on both sides, so that sums are right",
        round_("plus = [self.self_seed, *(", "plus = [*("),
        unmask("(*self_seeds, *subtracted))", "tuple(subtracted))"),
        killers=(STRUCTURE, RECORDED_UPLOAD),
    ),
    mutant(
        "one pair's mask is omitted at both ends, so that sums are right",
        epoch("if other != self.index\n", "if other != self.index and {other, self.index} != {0, 1}\n"),
        killers=(STRUCTURE,),
    ),
    mutant("the sign of pair masks is swapped", *SWAPPED_SIGNS, killers=(STRUCTURE, EXACT_SUM)),
    mutant(
        "the sign of pair masks is swapped on both sides, so that sums are right",
        *SWAPPED_SIGNS,
        unmask("(subtracted if survivor < dropped else added)", "(added if survivor < dropped else subtracted)"),
        killers=(STRUCTURE, RECORDED_UPLOAD),
    ),
    mutant(
        "masks come from the Mersenne Twister",
        Edit(
            CORE + "prg.py",
            "from cryptography.hazmat.primitives.ciphers.aead import AESGCM\n",
            MERSENNE_TWISTER,
        ),
        killers=(
            UNIT + "test_parts.py::test_streams_are_those_of_aes_counter_mode_at_any_chunk_in_any_order",
            VECTORS + "test_secagg_frozen.py::test_frozen_answer",
        ),
    ),
    mutant(
        "every chunk has the stream of the first",
        Edit(CORE + "prg.py", 'nonce = chunk.to_bytes(NONCE_BYTES, "big")', "nonce = bytes(NONCE_BYTES)"),
        killers=(STRUCTURE,),
    ),
    # --- what masks are bound to ---
    mutant(
        "the context does not hold the model's digest",
        context("            start.model_hash,\n        )", "        )"),
        killers=(
            UNIT + "test_protocol.py::test_members_who_were_told_different_models_share_no_context",
            VECTORS + "test_secagg_frozen.py::test_frozen_answer",
        ),
    ),
    mutant(
        "the context does not hold the cohort",
        context("            bitmap(start.cohort, len(members)),\n", ""),
        killers=(VECTORS + "test_secagg_transcript.py::test_the_start_gives_the_recorded_context_and_mask_seeds",),
    ),
    mutant(
        "two rounds have the same pair masks",
        hashing('derive(chain, run_id, "pair-key", round_)', 'derive(bytes(32), run_id, "pair-key")'),
        hashing('derive(key, context, "pair", low, high)', 'derive(key, bytes(32), "pair", low, high)'),
        killers=(UNIT + "test_parts.py::test_both_ends_of_a_pair_have_one_seed_and_no_two_pairs_or_rounds_share_any",),
    ),
    mutant(
        "the keys of a round are not forgotten when it starts",
        epoch("return keys.skip_to(start.round + 1), keys", "return keys, keys"),
        killers=(UNIT + "test_protocol.py::test_a_round_starts_once_and_never_an_older_one",),
    ),
    mutant(
        "the chain of keys does not move on",
        hashing('derive(chain, run_id, "ratchet")', "chain"),
        killers=(VECTORS + "test_secagg_frozen.py::test_frozen_answer",),
    ),
    mutant(
        "a round starts on another model than the site has",
        epoch("if start.model_hash != model_hash:", "if False:"),
        killers=(UNIT + "test_protocol.py::test_a_start_that_does_not_fit_is_refused",),
    ),
    mutant(
        "a second sum is opened on a spent model",
        epoch("if model_hash in spent_models:", "if False:"),
        killers=(UNIT + "test_protocol.py::test_no_second_sum_is_opened_on_a_spent_model",),
    ),
    # --- thresholds ---
    mutant(
        "the threshold is one too low",
        Edit(CORE + "plan.py", "quorum = (members + colluders) // 2 + 1", "quorum = (members + colluders) // 2"),
        killers=(UNIT + "test_protocol.py::test_default_thresholds_are_the_two_thirds_rule",),
    ),
    mutant(
        "one share fewer than the threshold opens a secret",
        epoch("size = (threshold - 1) * COEFFICIENT_BYTES", "size = (threshold - 2) * COEFFICIENT_BYTES"),
        killers=(UNIT + "test_properties.py::test_one_reveal_fewer_than_the_threshold_opens_no_secret",),
    ),
    mutant(
        "both secrets are shared by one polynomial",
        epoch("self_polynomial = hashing.self_polynomial_key(", "self_polynomial = hashing.escrow_polynomial_key("),
        killers=(
            UNIT + "test_properties.py::test_shares_of_the_two_secrets_have_nothing_in_common",
            VECTORS + "test_secagg_transcript.py::test_dealing_again_commits_to_the_same_shares",
        ),
    ),
    mutant(
        "a survivor set may be one below the floor",
        context("        if len(found) < floor:", "        if len(found) < floor - 1:"),
        killers=(UNIT + "test_protocol.py::test_one_survivor_below_the_floor_opens_nothing_on_either_side",),
    ),
    mutant(
        "a cohort may be below the floor",
        context("if len(start.cohort) < floor:", "if False:"),
        killers=(UNIT + "test_protocol.py::test_a_cohort_below_the_floor_is_neither_started_nor_joined",),
    ),
    # --- closing a round ---
    mutant(
        "the quorum of commits is one too low",
        context("if len(signers) < self.thresholds.commits:", "if len(signers) < self.thresholds.commits - 1:"),
        killers=(UNIT + "test_protocol.py::test_evidence_short_of_a_quorum_doubled_or_for_another_set_opens_nothing",),
    ),
    mutant(
        "a commit that comes twice counts twice",
        context("signers = set()", "signers = []"),
        context("signers.add(", "signers.append("),
        killers=(UNIT + "test_protocol.py::test_evidence_short_of_a_quorum_doubled_or_for_another_set_opens_nothing",),
    ),
    mutant(
        "both kinds of share are answered at once",
        round_(
            "OpenedShare(self_share, hashing.commit_escrow_share(*place, escrow_share))",
            "OpenedShare(self_share, escrow_share[1:])",
        ),
        killers=(UNIT + "test_protocol.py::test_a_holder_opens_one_kind_of_share_for_each_owner", EXACT_SUM),
    ),
    mutant(
        "the other kind of share is answered",
        round_(
            "        if owner in survivors:\n            opened",
            "        if owner not in survivors:\n            opened",
        ),
        killers=(UNIT + "test_protocol.py::test_a_holder_opens_one_kind_of_share_for_each_owner",),
    ),
    mutant(
        "the set that a site is bound to is not remembered",
        round_("if tuple(sorted(survivors)) != bound:", "if False:"),
        killers=(
            UNIT + "test_protocol.py::test_a_second_survivor_set_is_refused_for_ever",
            DESK + "test_a_bound_site_answers_no_other_set",
        ),
    ),
    mutant(
        "the receipts are not checked in the fast close",
        round_("        self._check_receipts(survivors, receipts)\n        return _reveal(", "        return _reveal("),
        killers=(UNIT + "test_protocol.py::test_a_fast_close_needs_every_receipt_of_the_cohort_and_nothing_else",),
    ),
    mutant(
        "signatures of another round or context count",
        context("        if context != self.hash:", "        if False:"),
        killers=(
            UNIT + "test_protocol.py::test_members_who_were_told_different_models_share_no_context",
            UNIT + "test_faults.py::test_reveals_and_commits_of_another_round_set_or_member_are_not_counted",
        ),
    ),
    # --- set-up ---
    mutant(
        "nobody asks who has sealed a share",
        epoch('        self.members.check_signature(signed, "share", sealed.owner)\n', ""),
        killers=(UNIT + "test_faults.py::test_a_box_that_the_coordinator_has_sealed_in_a_members_name_is_refused",),
    ),
    mutant(
        "a member deals under a roster with other keys in its name",
        epoch("if roster.advertisements[index].encode() != own:", "if False:"),
        killers=(UNIT + "test_faults.py::test_a_member_does_not_deal_under_a_roster_with_other_keys_in_its_name",),
    ),
    mutant(
        "a KEM key of low order is taken",
        Edit(CORE + "roster.py", "    check_public_key(found.kem_key)\n", ""),
        killers=(UNIT + "test_faults.py::test_a_malformed_kem_key_is_refused_even_well_signed",),
    ),
    # --- opening ---
    mutant(
        "a revealed share is not compared with its owner's commitment",
        Edit(CORE + "coordinator.py", "if found != commitments[owner, sender]:", "if False:"),
        killers=(
            UNIT + "test_faults.py::test_a_holder_that_reveals_a_wrong_share_is_named_and_the_others_open_the_sum",
        ),
    ),
    mutant(
        "an opened escrow key is not compared with its commitment",
        unmask(
            "key is None or hashing.commit_escrow_key(*place, key) != advertised.escrow_commitments[offset]:",
            "key is None:",
        ),
        killers=(UNIT + "test_faults.py::test_an_owner_that_dealt_wrong_shares_is_named_as_survivor_and_as_dropped",),
    ),
    mutant(
        "an escrowed pair key is not compared with its commitment",
        unmask("if hashing.commit_pair_key(roster_hash, *ends, round_, pair_key) != expected:", "if False:"),
        killers=(UNIT + "test_faults.py::test_an_escrow_with_other_keys_or_that_does_not_open_names_its_owner",),
    ),
    mutant(
        "the count word is not checked",
        packing("if count != survivors:", "if False:"),
        killers=(
            UNIT + "test_faults.py::test_a_wrong_unmask_shows_in_the_count_word",
            UNIT + "test_packing.py::test_an_impossible_tail_is_refused",
        ),
    ),
    mutant(
        "an audit does not compare chunks with receipts",
        Edit(
            CORE + "audit.py",
            "if hashlib.sha256(content).digest() != self.chunk_digests[index][chunk]:",
            "if False:",
        ),
        killers=(
            UNIT + "test_audit.py::test_one_flipped_bit_in_any_chunk_of_any_member_is_found_and_the_member_named",
        ),
    ),
    # --- lanes ---
    mutant(
        "rounding is done in float32",
        packing(INTEGER_ROUNDING, FLOAT_ROUNDING),
        killers=(UNIT + "test_properties.py::test_no_rounding_leaves_its_lane_at_the_clips_edge", UNBIASED),
    ),
    mutant(
        "a round's vector is another's",
        Edit(CORE + "plan.py", "self.schedule[(round_ - 1) % len(self.schedule)]", "self.schedule[0]"),
        killers=(
            UNIT + "test_turns.py::test_a_rounds_number_alone_says_what_it_carries",
            UNIT + "test_turns.py::test_rounds_of_one_epoch_sum_vectors_of_their_own_lengths_and_clips",
        ),
    ),
    mutant(
        "turns are not under the plan's digest",
        Edit(CORE + "plan.py", "            writer.u32(turn)\n", "            writer.u32(0)\n"),
        killers=(UNIT + "test_turns.py::test_turns_are_in_the_plans_encoding_and_so_in_every_key_and_mask",),
    ),
    mutant("rounding is always down", packing(ADD_RANDOM, ""), killers=(UNBIASED,)),
    mutant(
        "rounding is to the nearest",
        packing(ADD_RANDOM, "        integers += 1 << (self._fraction - 1)\n"),
        killers=(UNBIASED,),
    ),
    mutant(
        "words of closed metric groups are filled",
        round_(
            "groups = self.context.groups_filled_by(self.index)",
            "groups = [group.name for group in self.context.epoch.plan.metric_groups]",
        ),
        killers=(UNIT + "test_metric_groups.py::test_words_of_a_closed_group_are_zeros_at_the_only_site_that_has_any",),
    ),
    mutant(
        "words of narrow metric groups are not masked once more",
        round_("words[places] += stream if self.index < other else -stream", "pass"),
        killers=(
            UNIT
            + "test_metric_groups.py::test_words_of_a_narrow_group_are_noise_at_every_contributor_and_of_no_other_word",
            UNIT + "test_metric_groups.py::test_of_a_narrow_group_without_one_contributor_only_noise_is_left",
        ),
    ),
    mutant(
        "group keys are the pair keys that an escrow opens",
        Edit(CORE + "hashing.py", '"group-key", round_', '"pair-key", round_'),
        killers=(UNIT + "test_metric_groups.py::test_group_keys_are_not_those_that_an_escrow_opens",),
    ),
    # --- what is printed ---
    mutant(
        "a signed message prints its body",
        Edit(CORE + "messages.py", "    body: bytes = field(repr=False)\n", "    body: bytes\n"),
        killers=(
            UNIT + "test_secrets.py::test_no_secret_is_in_what_any_value_prints",
            UNIT + "test_secrets.py::test_every_field_of_bytes_that_a_repr_shows_is_known_to_be_public",
        ),
    ),
    # --- the journal ---
    mutant(
        "shares are journalled after they are deposited",
        desk(
            "            self._journal.put_epoch(entry)\n        if entry.phase is EpochPhase.DEALT:\n"
            "            self._client().deposit_shares(task.run, task.epoch, Dealt.from_bytes(entry.state).message)\n",
            "            self._client().deposit_shares(task.run, task.epoch, Dealt.from_bytes(entry.state).message)\n"
            "            self._journal.put_epoch(entry)\n",
        ),
        killers=(DESK + "test_every_message_is_journalled_before_it_is_sent",),
    ),
    mutant(
        "the masked update is journalled after it is sent",
        desk("        self._journal.put_round(after)\n        if report", "        if report"),
        killers=(DESK + "test_every_message_is_journalled_before_it_is_sent",),
    ),
    mutant(
        "the commit is journalled after it is sent",
        desk(
            JOURNAL_COMMIT + SEND_COMMIT,
            SEND_COMMIT + JOURNAL_COMMIT,
        ),
        killers=(DESK + "test_every_message_is_journalled_before_it_is_sent",),
    ),
    mutant(
        "the reveal is journalled after it is sent",
        desk(
            "            self._journal.put_round(entry)\n"
            "        self._client().reveal_shares(task.run, task.round, Revealed.from_bytes(entry.state).message)\n",
            "        self._client().reveal_shares(task.run, task.round, Revealed.from_bytes(entry.state).message)\n"
            "        self._journal.put_round(entry)\n",
        ),
        killers=(DESK + "test_every_message_is_journalled_before_it_is_sent",),
    ),
    mutant(
        "a journal that is behind its counter keeps its keys",
        Edit("participant/journal.py", "            if went_back:\n", "            if False:\n"),
        killers=("tests/unit/participant/test_fence.py::test_a_journal_that_its_counter_does_not_know_has_no_keys",),
    ),
    # --- what a lying coordinator asks for ---
    mutant(
        "an update is masked by another plan than its keys were made under",
        Edit(
            "participant/masking.py",
            "if masking.context.epoch.plan.plan_hash != terms.plan_digest:",
            "if False:",
        ),
        killers=(
            "tests/rpc/test_swapped_plan.py::test_a_site_masks_nothing_by_another_plan_than_its_keys_were_made_under",
        ),
    ),
    mutant(
        "rounds that were masked ahead open any number of sums on one model",
        Edit("participant/masking.py", "            if self._is_spent(entry):\n", "            if False:\n"),
        killers=(
            MASKING_DESK
            + "test_rounds_on_one_model_that_were_all_masked_before_the_first_was_closed_open_no_more_sums_than_others",
        ),
    ),
    mutant(
        "a plan may count fewer colluders than a third of the charter's members",
        Edit(
            "common/plan_review.py",
            "masking.colluders != charter.assumed_colluders,",
            "masking.colluders > charter.assumed_colluders,",
        ),
        killers=(GUARD + "test_a_plan_that_counts_its_colluders_among_fewer_than_the_charters_members_is_refused",),
    ),
    # --- what is said beside the masks ---
    mutant(
        "shares make the others' weights next to nothing",
        Edit("common/instructions.py", "max(LEAST_WEIGHT, mass", "max(2.0**-20, mass"),
        killers=(UPDATES + "test_no_shares_make_a_sum_one_sites_own",),
    ),
    mutant(
        "a cap of records makes the others' weights next to nothing",
        Edit("participant/update.py", "max(LEAST_WEIGHT, self.records / cap)", "max(2.0**-20, self.records / cap)"),
        killers=(
            "tests/unit/participant/test_update.py::test_the_weight_is_the_share_of_the_cap_and_never_below_a_sixteenth",
        ),
    ),
    mutant(
        "a handful of records is drawn again and again",
        Edit("common/instructions.py", "return min(MOST_DRAWN, max(1.0 / MOST_DRAWN, drawn))", "return drawn"),
        killers=(UPDATES + "test_no_records_are_drawn_over_sixteen_times_as_often_or_as_seldom_as_the_mean_ones",),
    ),
    mutant(
        "a path passes for a run's name",
        Edit("common/rpc/assignments.py", '    parse_run_id(task.run, field="run")\n', ""),
        killers=("tests/unit/rounds/test_assignments_on_the_wire.py::test_a_path_does_not_pass_for_a_runs_name",),
    ),
    mutant(
        "one record decides what the others count in a private step",
        Edit(
            "participant/training/dp_sgd.py",
            "self.weights[index] / self.heaviest for",
            "self.weights[index] / max(self.weights) for",
        ),
        killers=(
            "tests/unit/training/test_dp_sgd.py::test_one_record_of_a_heavy_domain_does_not_change_what_the_others_count",
        ),
    ),
    # --- sparse graph ---
    mutant(
        "a cohort need not cover the ring",
        context('        _check_cover(graph_of(epoch, members), start.cohort, "cohort")\n', ""),
        killers=(GRAPH + "test_a_cohort_that_leaves_a_member_without_neighbours_is_refused_by_both_sides",),
    ),
    mutant(
        "a survivor set need not cover the ring",
        context('        _check_cover(self.graph, found, "survivor set")\n', ""),
        killers=(GRAPH + "test_a_survivor_set_that_would_cut_a_member_off_is_refused_by_both_sides",),
    ),
    mutant(
        "a member fewer in a stretch of the ring will do",
        Edit(CORE + "graph.py", "if least < self.sparse.cover:", "if least + 1 < self.sparse.cover:"),
        killers=(GRAPH + "test_a_survivor_set_that_would_cut_a_member_off_is_refused_by_both_sides",),
    ),
    mutant(
        "the threshold of a sparse graph forgets the owner's own share",
        Edit(CORE + "graph.py", "too_many = 2 * threshold - degree - 1", "too_many = 2 * threshold - degree"),
        killers=(
            GRAPH + "test_sharing_alone_needs_the_degrees_and_thresholds_of_the_table",
            GRAPH + "test_parameters_hold_what_they_promise_at_any_size",
        ),
    ),
)
