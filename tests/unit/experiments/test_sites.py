"""Who trains on what: nobody sees another's records, and nobody is tested on what anybody trained on."""

import json
from dataclasses import replace

import pytest

from common.errors import DataInvalid
from experiments.presets import SMALL, TINY, Preset, preset_named
from experiments.sites import LEAST_RECORDS, TEST, TRAIN, VALIDATION, domains_of, make_sites, rare_domain_of, with_rare

SETS = {
    "clinc150": ("classification", ("banking", "travel", "kitchen_and_dining", "work")),
    "ncbi_disease": ("ner", ("biomedical",)),
    "bc5cdr": ("ner", ("biomedical",)),
    "dolly": ("instruction", ("general",)),
    "medquad": ("instruction", ("medical",)),
}


def write_sets(folder):
    for name, (task, domains) in SETS.items():
        (folder / name).mkdir()
        for number, part in enumerate((TRAIN, VALIDATION, TEST)):
            lines = [
                json.dumps(record(name, task, domain, number * 1000 + index))
                for domain in domains
                for index in range(40)
            ]
            (folder / name / part).write_text("\n".join(lines) + "\n")


def record(name, task, domain, index):
    fields = {"id": f"{name}-{domain}-{index}", "domain": domain, "task": task, "instruction": f"what of {name}?"}
    text = f"{domain} question {index}"
    match task:
        case "classification":
            return {**fields, "input": text, "output": f"{domain} {index % 4}", "label": f"{domain}-{index % 4}"}
        case "ner":
            return {**fields, "input": text, "output": f"Word: {domain}", "entities": [[0, len(domain), "Word"]]}
        case _:
            return {**fields, "input": text, "output": f"answer {index}"}


def asked(path):
    return [json.loads(line)["input"] for line in path.read_bytes().splitlines()]


@pytest.fixture
def sites(tmp_path):
    (tmp_path / "data").mkdir()
    write_sets(tmp_path / "data")
    return make_sites(SMALL, tmp_path / "sites", data=tmp_path / "data")


def test_domains_have_as_many_sites_as_the_preset_says(sites):
    assert {name: len(found) for name, found in domains_of(sites).items()} == {
        "assistant": 3,
        "biomedical": 3,
        "general": 1,
        "medical": 1,
    }


def test_no_two_sites_have_a_record_in_common(sites):
    everything = [text for site in sites for text in (*asked(site.train), *asked(site.validation), *asked(site.test))]
    of_set = [
        (site.source, text)
        for site in sites
        for text in (*asked(site.train), *asked(site.validation), *asked(site.test))
    ]

    assert everything
    assert len(set(of_set)) == len(of_set)


def test_a_site_takes_its_own_part_of_a_set_alone(sites):
    bank = next(site for site in sites if site.name == "assistant-bank")

    assert all(text.startswith("banking ") for text in asked(bank.train))


def test_records_say_the_domain_that_the_experiment_knows_them_by(sites):
    for site in sites:
        assert {json.loads(line)["domain"] for line in site.train.read_text().splitlines()} == {site.domain}


def test_the_same_sites_are_made_again(sites, tmp_path):
    again = make_sites(SMALL, tmp_path / "again", data=tmp_path / "data")

    assert [site.train.read_bytes() for site in again] == [site.train.read_bytes() for site in sites]


def rows_in(sites, domain):
    return sum(site.train_records for site in sites if site.domain == domain)


def test_the_last_domain_whose_sums_may_be_opened_is_the_one_to_be_cut_down(sites):
    assert rare_domain_of(sites) == "biomedical"
    assert rare_domain_of([site for site in sites if site.domain != "biomedical"]) == "assistant"


def test_a_domain_is_cut_down_to_its_share_of_all_training_records(sites, tmp_path):
    cut = with_rare(sites, "biomedical", share=0.2, place=tmp_path / "rare")

    assert rows_in(cut, "biomedical") / sum(site.train_records for site in cut) == pytest.approx(0.2, abs=0.02)
    for site in cut:
        assert len(site.train.read_text().splitlines()) == site.train_records


def test_a_cut_site_keeps_its_first_records_and_all_that_it_is_judged_by(sites, tmp_path):
    cut = with_rare(sites, "biomedical", share=0.2, place=tmp_path / "rare")

    for whole, site in zip(sites, cut, strict=True):
        if site.domain != "biomedical":
            assert site == whole
            continue
        assert site.folder != whole.folder
        assert whole.train.read_bytes().startswith(site.train.read_bytes())
        assert site.validation.read_bytes() == whole.validation.read_bytes()
        assert site.test.read_bytes() == whole.test.read_bytes()


def test_no_site_is_left_with_fewer_records_than_it_can_learn_from(sites, tmp_path):
    cut = with_rare(sites, "biomedical", share=0.001, place=tmp_path / "rare")

    assert {site.train_records for site in cut if site.domain == "biomedical"} == {LEAST_RECORDS}


def test_a_line_separator_within_a_record_does_not_cut_it(sites, tmp_path):
    first = next(site for site in sites if site.domain == "biomedical")
    lines = [json.dumps({"input": f"one\u2028two {index}"}, ensure_ascii=False) for index in range(20)]
    first.train.write_text("\n".join(lines) + "\n", encoding="utf-8")

    (cut,) = with_rare([first], "biomedical", share=0.5, place=tmp_path / "rare")

    assert asked(cut.train) == [f"one\u2028two {index}" for index in range(LEAST_RECORDS)]


def test_a_missing_set_is_named_with_what_is_needed(tmp_path):
    with pytest.raises(DataInvalid, match="bc5cdr, clinc150, dolly, medquad, ncbi_disease"):
        make_sites(SMALL, tmp_path / "sites", data=tmp_path)


def test_an_unknown_preset_is_answered_with_those_that_there_are():
    with pytest.raises(Exception, match="tiny, small, full"):
        preset_named("huge")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"sites": (2, 2)}, "at least 3 sites"), ({"methods": ()}, "fedit"), ({"rare_share": 1.0}, "rare_share")],
)
def test_a_preset_that_could_not_answer_the_question_is_none(change, said):
    with pytest.raises(Exception, match=said):
        replace(TINY, **change)


def test_presets_reach_what_the_protocol_asks_for():
    full: Preset = preset_named("full")

    assert sum(full.sites) >= 8
    assert len(full.sites) >= 4
    assert len(full.seeds) >= 3
    assert {method.name for method in full.methods} >= {"fedit", "ffa_lora", "rolora", "core"}
    assert all(len(method.learning_rates) == 3 for method in full.methods)
    assert full.rare_share == 0.05
