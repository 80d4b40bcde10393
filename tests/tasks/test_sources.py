import sys
import types

import pytest

from selftaught.errors import InputError
from selftaught.tasks.sources import call_for_numbers, read_hub, split_file

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


def halves(*numbers):
    return (number if number is None else number / 2 for number in numbers)


def first(*values):
    return values[0]


def test_numbers_of_a_users_function():
    assert call_for_numbers(f"{__name__}:first", 3, where="row 1") == [3.0]
    assert call_for_numbers(f"{__name__}:first", None, where="row 1") == [None]
    assert call_for_numbers(f"{__name__}:halves", 3, None, where="row 1", count=2) == [1.5, None]
    assert call_for_numbers(f"{__name__}:halves", where="row 1", count=0) == []


@pytest.mark.parametrize(
    ("name", "arguments", "count", "message"),
    [
        ("first", (float("inf"),), None, "first returned inf for row 1; it must return a number, or None$"),
        ("first", ([1.0],), None, "first failed on row 1 with TypeError: .*; mend it"),
        ("first", (), None, "first failed on row 1 with IndexError: .*; mend it"),
        ("first", ((1.0,),), 2, r"first returned \(1.0,\) for row 1; it must return a number, or None, for each of 2$"),
        ("halves", (1, "x"), 2, "halves failed on row 1 with TypeError: .*; mend it"),
    ],
)
def test_functions_that_return_no_numbers(name, arguments, count, message):
    with pytest.raises(InputError, match=message):
        call_for_numbers(f"{__name__}:{name}", *arguments, where="row 1", count=count)
