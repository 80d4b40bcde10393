import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.samples import HOSTILE

from selftaught.errors import InputError
from selftaught.store.tables import read_table

ROWS = [{"prompt": text, "n": i, "x": i / 2, "label": i % 2 == 0} for i, text in enumerate(HOSTILE) if text]
FIELDS = {"prompt": str, "n": int, "x": float, "label": bool}


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        packers = {".gz": gzip.compress, ".xz": lzma.compress}
        path.write_bytes(packers.get(path.suffix, bytes)(text.encode()))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.json", "a.csv", "a.parquet", "A.JSONL"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, ROWS)
    records = list(read_table(path, FIELDS))
    assert [r.fields for r in records] == ROWS
    assert [type(v) for r in records for v in r.fields.values()] == [str, int, float, bool] * len(ROWS)
    assert all(str(path) in r.where for r in records)


def test_a_directory_is_read_file_by_file(tmp_path: Path) -> None:
    save(tmp_path / "b.csv", ROWS[2:])
    save(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.jsonl").write_text("x")
    assert [r.fields for r in read_table(tmp_path, FIELDS)] == ROWS


def test_blank_lines_marks_and_line_ends_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n\r\n   \n{"a": "y"}')
    assert [(r.fields, r.where[-6:]) for r in read_table(path, {"a": str})] == [
        ({"a": "x"}, "line 1"),
        ({"a": "y"}, "line 4"),
    ]
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffa,b\r\n"x\r\ny",1\r\n\r\nz,2\r\n'.encode())
    assert [(r.fields, r.where[-6:]) for r in read_table(path, {"a": str, "b": int})] == [
        ({"a": "x\r\ny", "b": 1}, "line 3"),
        ({"a": "z", "b": 2}, "line 5"),
    ]


def test_optional_and_further_fields(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [{"a": "x", "b": None, "more": {"c": [1]}}, {"a": "y", "b": 2}])
    assert [r.fields for r in read_table(path, {"a": str}, {"b": int})] == [
        {"a": "x", "more": {"c": [1]}},
        {"a": "y", "b": 2},
    ]
    (tmp_path / "a.csv").write_text("a,b,c\nx,,\n")
    assert [r.fields for r in read_table(tmp_path / "a.csv", {"a": str}, {"b": float})] == [{"a": "x", "c": ""}]


def test_a_cell_is_text_where_text_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n007,1\n")
    for types in (str, (str, int, float)):
        assert [r.fields["a"] for r in read_table(tmp_path / "a.csv", {"a": types})] == ["007"]


BAD = {
    "malformed": ("a.jsonl", b'{"a": "x"}\n{"a": "y",}\n', ("line 2", "not JSON", "character 11")),
    "cut off": ("a.jsonl", b'{"a": "x"}\n{"a": "y', ("line 2", "not JSON")),
    "no object": ("a.jsonl", b'{"a": "x"}\n["y"]\n', ("line 2", "['y'] is a list", '{"prompt": "..."}')),
    "missing": ("a.jsonl", b'{"a": "x"}\n\n{"b": "y"}\n', ("line 3", "'a' is missing (fields: b)", "must be text")),
    "null": ("a.jsonl", b'{"a": null}\n', ("line 1", "'a' is null", "must be text")),
    "wrong type": ("a.jsonl", b'{"a": 5}\n', ("line 1", "'a' = 5 is a whole number", "must be text")),
    "wrong truth": ("a.jsonl", b'{"a": true}\n', ("line 1", "'a' = True is true or false", "must be text")),
    "wrong optional": ("a.jsonl", b'{"a": "x", "n": "many"}\n', ("line 1", "'n' = 'many' is text", "whole number")),
    "truth for number": ("a.jsonl", b'{"a": "x", "n": true}\n', ("line 1", "'n' = True", "whole number")),
    "fraction": ("a.jsonl", b'{"a": "x", "n": 1.5}\n', ("line 1", "'n' = 1.5 is a number", "whole number")),
    "empty": ("a.jsonl", b"", ("holds no rows",)),
    "blank": ("a.jsonl", b"\n \n", ("holds no rows",)),
    "empty gz": ("a.jsonl.gz", gzip.compress(b""), ("holds no rows",)),
    "not utf-8": ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', ("line 2", "byte 7 is not UTF-8")),
    "surrogate": ("a.jsonl", b'{"a": "x\\ud83d"}\n', ("line 1", "'a'", "lone surrogate \\ud83d")),
    "deep surrogate": ("a.jsonl", b'{"a": "x", "b": [{"c": "\\udfff"}]}\n', ("line 1", "'b'", "lone surrogate")),
    "deep": ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", ("line 1", "not usable JSON")),
    "long number": ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", ("line 1", "not usable JSON")),
    "cut gz": ("a.jsonl.gz", gzip.compress(b'{"a": "x"}\n' * 100)[:-9], ("cannot be read", "whole")),
    "no gz": ("a.jsonl.gz", b'{"a": "x"}\n', ("cannot be read", "whole")),
    "broken gz": ("a.jsonl.gz", gzip.compress(bytes(range(97, 123)) * 9)[:12] + b"\xff" * 40, ("cannot be read",)),
    "cut xz": ("a.jsonl.xz", lzma.compress(b'{"a": "x"}\n' * 100)[:-9], ("cannot be read", "whole")),
    "no xz": ("a.jsonl.xz", b'{"a": "x"}\n', ("cannot be read", "whole")),
    "json list": ("a.json", b'[{"a": "x"}, {"a": 3}]', ("row 2", "'a' = 3")),
    "json broken": ("a.json", b'[{"a": "x"},\n {"a" 3}]', ("not JSON", "line 2, character 7")),
    "json lines in json": ("a.json", b'{"a": "x"}\n{"a": 3}', ("line 2", "'a' = 3")),
    "empty json": ("a.json", b"[]", ("holds no rows",)),
    "csv header only": ("a.csv", b"a,n\n", ("holds no rows",)),
    "csv empty": ("a.csv", b"", ("holds no rows",)),
    "csv short": ("a.csv", b'a,n\n"x\ny",1\nz\n', ("line 4", "1 values for 2 columns", "quote")),
    "csv twice": ("a.csv", b"a,a\n1,2\n", ("line 1", "named twice")),
    "csv number": ("a.csv", b"a,n\nx,many\n", ("line 2", "'n' = 'many' is text", "whole number")),
    "csv missing": ("a.csv", b"b,n\nx,1\n", ("line 2", "'a' is missing (fields: b, n)")),
    "csv quote": ("a.csv", b'a,n\n"x,1\n', ("not CSV", "quotes")),
    "csv latin": ("a.csv", b"a,n\nx,1\n\xe9,2\n", ("line 3", "not UTF-8")),
    "no parquet": ("a.parquet", b"PAR1 nonsense", ("not a readable Parquet file", "whole")),
    "empty parquet": ("a.parquet", b"", ("not a readable Parquet file",)),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, case: tuple[str, bytes, tuple[str, ...]]) -> None:
    name, content, words = case
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        list(read_table(tmp_path / name, {"a": str}, {"n": int}))
    message = str(error.value)
    assert message.startswith(str(tmp_path / name))
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message, message


def test_rows_before_a_bad_line_are_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "x"}\nbad')
    rows = read_table(tmp_path / "a.jsonl", {"a": str})
    assert next(rows).fields == {"a": "x"}
    with pytest.raises(InputError, match="line 2"):
        next(rows)


def test_parquet_rows_are_numbered_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x", None]}), path)
    with pytest.raises(InputError, match=rf"{path}, row 2: 'a' is null"):
        list(read_table(path, {"a": str}))
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match=rf"{path}, row 1: 'a' = 1 is a whole number"):
        list(read_table(path, {"a": str}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(read_table(path, {"a": str}))


def test_what_is_not_there_or_of_no_known_type(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give a data file"):
        list(read_table(tmp_path / "a.jsonl", {}))
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(InputError, match=r"a.xlsx is of no known type; give a file ending in .jsonl, .jsonl.gz"):
        list(read_table(tmp_path / "a.xlsx", {}))
    with pytest.raises(InputError, match="holds no data file"):
        list(read_table(tmp_path, {}))


def test_a_long_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + "x" * 300_000 + "\n")
    assert [len(r.fields["a"]) for r in read_table(tmp_path / "a.csv", {"a": str})] == [300_000]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".json", ".csv", ".jsonl.gz", ".jsonl.xz", ".parquet"]))
def test_no_bytes_bring_anything_but_rows_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    path.write_bytes(content)
    try:
        for record in read_table(path, {"a": str}, {"n": int}):
            assert isinstance(record.fields["a"], str)
    except InputError as error:
        assert str(path) in str(error)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"a": texts, "n": st.integers(-(2**60), 2**60)}), min_size=1, max_size=5))
def test_any_rows_written_as_json_lines_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) for row in rows), encoding="utf-8")
    assert [r.fields for r in read_table(path, {"a": str, "n": int})] == rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"a": texts, "n": st.integers()}), min_size=1, max_size=5))
def test_any_rows_written_as_csv_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["a", "n"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    assert [r.fields for r in read_table(path, {"a": str, "n": int})] == rows
