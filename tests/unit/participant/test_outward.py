import pytest

from participant.outward import without_folders


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("/srv/patients/oncology/train.jsonl: line 1 has no answer", "train.jsonl: line 1 has no answer"),
        ("cannot read /home/j.doe/a-b/x.json, or /tmp/y", "cannot read x.json, or y"),
        ("see https://accord.example.org/docs/page", "see https://accord.example.org/docs/page"),
        ("2 of 3 sites and/or none; 4 MiB/s", "2 of 3 sites and/or none; 4 MiB/s"),
        ("relative/folder/file.json is missing", "relative/folder/file.json is missing"),
        ("'/data/x/y.jsonl'", "'y.jsonl'"),
        ("", ""),
    ],
)
def test_folders_of_this_machine_are_not_told(said, heard):
    assert without_folders(said) == heard
