"""Which elements are sent, and where they lie: index arithmetic against plain lists."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from common.methods import Method, adapter_method, laid_out, turn_of
from common.methods.sent import Stretches
from common.sent import moving_layout, sent_vector, sent_vectors
from tests.unit.rounds.made import plan

SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8)


@given(SHAPES, st.data())
def test_stretches_are_the_sent_elements_in_order_and_gaps_are_the_others(shapes, data):
    slots = laid_out((str(at), shape) for at, shape in enumerate(shapes)).slots
    chosen = [slot for slot in slots if data.draw(st.booleans())]
    total = slots[-1].offset + slots[-1].size
    places = list(chain.from_iterable(range(slot.offset, slot.offset + slot.size) for slot in chosen))
    stretches = Stretches.of(chosen)

    assert stretches.size == len(places)
    assert sorted([*places, *chain.from_iterable(range(*gap) for gap in stretches.gaps(total))]) == list(range(total))
    start = data.draw(st.integers(0, len(places)))
    stop = data.draw(st.integers(start, len(places)))
    found = [
        (part.start + offset, place + offset)
        for part, place in stretches.within(start, stop)
        for offset in range(part.stop - part.start)
    ]
    assert found == list(enumerate(places[start:stop]))


@given(SHAPES, st.data())
def test_windows_hold_every_sent_element_once_in_order_and_are_no_larger_than_asked(shapes, data):
    slots = laid_out((str(at), shape) for at, shape in enumerate(shapes)).slots
    stretches = Stretches.of(slot for slot in slots if data.draw(st.booleans()))
    first, most = data.draw(st.integers(0, stretches.size)), data.draw(st.integers(1, 40))
    windows = list(stretches.windows(first, most))
    found = [start + at + offset for start, pieces in windows for at, count in pieces for offset in range(count)]
    expected = [
        place + offset
        for part, place in stretches.within(first, stretches.size)
        for offset in range(part.stop - part.start)
    ]
    assert found == expected
    assert all(pieces[0][0] == 0 and sum(pieces[-1]) <= most for _, pieces in windows)


def test_neighbouring_tensors_are_one_stretch():
    assert len(Stretches.of(laid_out([("a", (2, 3)), ("b", (3, 2))]).slots).parts) == 1
    assert Stretches.of(()).size == 0


def test_fedit_sends_all_that_is_stored_ffa_only_b_and_rolora_the_factor_whose_turn_it_is():
    made = plan()
    assert [slot.name for slot in sent_vector(made, 1).tensors] == [slot.name for slot in made.layout().slots]

    ffa = plan(method=Method(name="ffa_lora"))
    assert {slot.name.split(".")[-2] for slot in sent_vector(ffa, 9).tensors} == {"lora_B"}
    assert sent_vector(ffa, 9).parameters == moving_layout(ffa).parameters < ffa.layout().parameters

    rolora = plan(method=Method(name="rolora", schedule=("B", "B", "A"), phase_rounds=2))
    sent = [{slot.name.split(".")[-2] for slot in sent_vector(rolora, number).tensors} for number in range(1, 14)]
    assert sent == [{"lora_B"}] * 4 + [{"lora_A"}] * 2 + [{"lora_B"}] * 4 + [{"lora_A"}] * 2 + [{"lora_B"}]
    assert moving_layout(rolora) == rolora.layout()
    assert sum(vector.parameters for vector in sent_vectors(rolora)) == rolora.layout().parameters


def test_product_probes_come_behind_the_deltas_and_nothing_else_changes():
    bare, probed = sent_vector(plan(), 1), sent_vector(plan(method=Method(product_probes=4)), 1)
    layers = len(bare.tensors) // 2
    assert probed.tensors == bare.tensors
    assert probed.slots[: len(bare.slots)] == bare.slots
    assert probed.parameters == bare.parameters + 4 * layers
    assert probed.extra_elements == 4 * layers


def test_turns_count_rounds_from_one():
    assert [turn_of((0, 1), number) for number in (1, 2, 3)] == [0, 1, 0]
    assert adapter_method(Method(name="rolora"), plan().adapter).schedule == (0, 1)
