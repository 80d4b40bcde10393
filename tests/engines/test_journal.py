from pathlib import Path

import pytest

from selftaught.engines.journal import Journal


@pytest.mark.parametrize(
    "damage",
    [
        b'{"prompt_id": "x", "k": 0, "te',
        b"\xff\xfe\x00",
        b"[1, 2]\n",
        b'{"k": 1}\n',
        b'{"prompt_id": 3, "k": "z"}\n',
        b"\n\n",
    ],
)
def test_a_damaged_journal(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        journal.add("a", 0, text="é\n", finish="stop", logprobs=[-0.5])
    path.write_bytes(path.read_bytes() + damage)
    with Journal(path) as journal:
        assert journal.get("a", 0)["text"] == "é\n" and journal.get("x", 0) is None
        journal.add("b", 1, text="", finish="length", logprobs=None)
    with Journal(path) as journal:
        assert journal.get("a", 0)["logprobs"] == [-0.5] and journal.get("b", 1)["finish"] == "length"
