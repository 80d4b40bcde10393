import json
from pathlib import Path

import pytest

from selftaught.errors import InputError
from selftaught.store.datafiles import read_pairs


def save(path: Path, **fields: object) -> Path:
    path.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", **fields}) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "names",
    [("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating")],
)
def test_scores_under_any_of_their_names_become_the_pairs(tmp_path, names):
    (pair,) = read_pairs(save(tmp_path / "a.jsonl", **dict(zip(names, (9, 2.5), strict=True)), source="x"))
    assert pair.meta == {"score_chosen": 9.0, "score_rejected": 2.5}
    assert pair.prompt.meta == {"source": "x"}


def test_csv_scores_are_numbers_and_missing_ones_are_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,score_chosen,score_rejected\nq,a,b,1.5,\n", encoding="utf-8")
    (pair,) = read_pairs(path)
    assert pair.meta == {"score_chosen": 1.5}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"score_chosen": "good"}, "'score_chosen' = 'good' is text"),
        ({"score_chosen": 1, "chosen_rating": 2}, "two columns hold the score_chosen"),
    ],
)
def test_bad_scores_are_named(tmp_path, fields, words):
    with pytest.raises(InputError, match=words):
        list(read_pairs(save(tmp_path / "a.jsonl", **fields)))
