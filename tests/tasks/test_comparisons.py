import json
from collections import Counter
from pathlib import Path

import pytest
from tests.worlds import shared_data

from selftaught.errors import InputError
from selftaught.tasks.comparisons import GOLD, read_comparisons


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**changes):
    return {"subset": "s", "idx": 1, "input": "Why?", "output_1": "a", "output_2": "b", "label": 2} | changes


def test_llmbar_rows(tmp_path):
    first, again = read_comparisons(write(tmp_path / "x.jsonl", row(), row(label=1)))
    assert first.prompt.text == "Why?" and first.prompt.meta == {"subset": "s"}
    assert [(c.k, c.text) for c in first.completions] == [(0, "a"), (1, "b")]
    assert [s.value for s in first.scores] == [0.0, 1.0] and {s.scorer for s in first.scores} == {GOLD}
    assert [s.value for s in again.scores] == [1.0, 0.0]
    assert len({first.id, again.id}) == 2, "a repeated instruction keeps an id of its own"
    assert {c.prompt_id for c in again.completions} == {again.id}


def test_preference_rows(tmp_path):
    (group,) = read_comparisons(write(tmp_path / "x.jsonl", {"prompt": "Why?", "chosen": "a", "rejected": "b"}))
    assert [c.text for c in group.completions] == ["a", "b"] and [s.value for s in group.scores] == [1.0, 0.0]


def test_a_limit(tmp_path):
    file = write(tmp_path / "x.jsonl", *(row(input=str(i)) for i in range(5)))
    assert [g.prompt.text for g in read_comparisons(file, 3)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(label=3), r"line 2: 'label' = 3; it must be 1 or 2"),
        (row(label="a"), r"line 2: 'label' = 'a' is text; it must be a whole number"),
        ({"input": "x", "output_1": "a"}, r"line 2: 'output_2' is missing"),
    ],
)
def test_bad_rows(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        read_comparisons(write(tmp_path / "x.jsonl", row(), bad))


def test_rows_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"line 1: no comparison \(fields: prompt\); give prompt, chosen and rejected"):
        read_comparisons(write(tmp_path / "x.jsonl", {"prompt": "x"}))


def test_llmbar():
    groups = read_comparisons(shared_data("llmbar") / "llmbar.jsonl")
    assert len(groups) == 986 and len({g.id for g in groups}) == 986
    subsets = Counter(g.prompt.meta["subset"] for g in groups)
    assert subsets["LLMBar/Natural"] and subsets["LLMBar/Adversarial/Neighbor"]
    first = sum(g.scores[0].value for g in groups)
    assert 0.4 < first / 986 < 0.6
