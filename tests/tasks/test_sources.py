import sys
import types

import pytest

from selftaught.errors import InputError
from selftaught.tasks.sources import read_hub, split_file

COLUMNS = {"question": str, "answer": str}


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set."""

    def load_dataset(data, name, split):
        if data != "someone/sums":
            raise FileNotFoundError(f"no {data}\nand more lines")
        return [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": None if split == "bad" else "4"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_rows_of_the_hub(hub):
    assert [r.fields["answer"] for r in read_hub("someone/sums", "main", "train", COLUMNS)] == ["2", "4"]


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ("someone/else", "train", r"someone/else \(main, train\): no someone/else; check the id"),
        ("someone/sums", "bad", "row 2: 'answer' = None; the columns must be question, answer"),
        ("../sums", "train", "does not exist"),
        ("a/b/c", "train", "does not exist"),
    ],
)
def test_what_the_hub_has_not(hub, data, split, message):
    with pytest.raises(InputError, match=message):
        list(read_hub(data, "main", split, COLUMNS))


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        list(read_hub("someone/sums", "main", "train", COLUMNS))


def test_split_file(tmp_path):
    (tmp_path / "dev.parquet").touch()
    assert split_file(tmp_path, "dev") == tmp_path / "dev.parquet" and split_file(tmp_path, "test") is None
