import dataclasses
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.samples import HOSTILE, every_type

from selftaught.errors import InputError
from selftaught.store.schema import FIELDS, NESTED, from_batch, row_type_named, schema_of, to_table
from selftaught.store.stage import Store
from selftaught.types import Completion, Demonstration, Document, Feedback, Pair, Prompt, Score

MANY = [row for text in HOSTILE for row in every_type(text)]


def rows_of(row_type: type) -> list[object]:
    return [row for row in MANY if type(row) is row_type]


def round_trip(row_type: type, rows: list[object], path: Path, batch: int = 3) -> list[object]:
    pq.write_table(to_table(row_type, rows), path, row_group_size=7)
    return [row for part in pq.ParquetFile(path).iter_batches(batch) for row in from_batch(row_type, part)]


@pytest.mark.parametrize("row_type", FIELDS, ids=lambda t: t.__name__)
def test_every_field_of_every_type_has_a_column(row_type: type) -> None:
    stored = {*FIELDS[row_type], *NESTED.get(row_type, {})}
    assert stored == {field.name for field in dataclasses.fields(row_type)}


@pytest.mark.parametrize("row_type", FIELDS, ids=lambda t: t.__name__)
def test_what_is_stored_comes_back(row_type: type, tmp_path: Path) -> None:
    rows = rows_of(row_type)
    back = round_trip(row_type, rows, tmp_path / "rows.parquet")
    assert back == rows
    assert [repr(row) for row in back] == [repr(row) for row in rows]  # types too: tuples stay tuples
    assert [type(value) for row in back for value in dataclasses.astuple(row)] == [
        type(value) for row in rows for value in dataclasses.astuple(row)
    ]


@pytest.mark.parametrize("row_type", [Demonstration, Pair], ids=lambda t: t.__name__)
def test_rows_written_before_there_were_masks_have_none(row_type: type, tmp_path: Path) -> None:
    rows = rows_of(row_type)
    with Store(tmp_path).writer("rows", "0" * 24, row_type) as writer:
        writer.write(0, rows)
        stage = writer.commit()
    file = stage.path / stage.manifest["shards"][0]["file"]
    pq.write_table(to_table(row_type, rows).drop_columns(["loss_from"]), file)
    unmasked = [dataclasses.replace(row, loss_from=()) for row in rows]
    assert list(stage) == unmasked
    plain = [dataclasses.replace(row, meta={}) for row in unmasked]
    assert list(stage.slice(0, len(rows), without=("meta",))) == plain


def test_a_batch_without_a_required_column_is_refused() -> None:
    (batch,) = to_table(Document, [Document(text="a")]).drop_columns(["text"]).to_batches()
    with pytest.raises(InputError, match="Document rows cannot be read without 'text'"):
        from_batch(Document, batch)


@pytest.mark.parametrize("row_type", FIELDS, ids=lambda t: t.__name__)
def test_slices_of_a_table_and_no_rows(row_type: type) -> None:
    rows = rows_of(row_type)
    table = to_table(row_type, rows)
    for start, stop in ((1, 3), (2, 2), (len(rows) - 1, len(rows))):
        batch = table.slice(start, stop - start).to_batches()
        assert [row for part in batch for row in from_batch(row_type, part)] == rows[start:stop]
    assert to_table(row_type, []).schema == schema_of(row_type)
    assert from_batch(row_type, pa.RecordBatch.from_pylist([], schema=schema_of(row_type))) == []


texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
metas = st.dictionaries(texts, plain, max_size=3)
floats32 = st.floats(width=32, allow_nan=False)
spans = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
completions = st.builds(
    Completion,
    prompt_id=texts,
    k=st.integers(0, 2**40),
    text=texts,
    token_ids=st.none() | st.lists(st.integers(0, 2**31 - 1)).map(tuple),
    logprobs=st.none() | st.lists(floats32).map(tuple),
    finish=st.sampled_from(["stop", "length", "error"]),
    discarded=st.lists(spans).map(tuple),
    latents=st.dictionaries(texts, st.lists(st.floats(allow_nan=False)).map(tuple), max_size=2),
    parents=st.lists(texts, min_size=1).map(tuple),
)
prompts = st.builds(
    lambda text, gold, meta: Prompt.from_text(text, gold=gold, meta=meta), texts, st.none() | texts, metas
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Pair, prompt=prompts, chosen=completions, rejected=completions, meta=metas), max_size=4))
def test_any_pairs_come_back(rows: list[Pair]) -> None:
    table = to_table(Pair, rows)
    assert [row for part in table.to_batches() for row in from_batch(Pair, part)] == rows
    assert table.column("chosen").to_pylist() == [row.chosen.text for row in rows]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Document, text=st.text(), meta=metas), min_size=1, max_size=3))
def test_any_text_comes_back_or_is_refused(rows: list[Document]) -> None:
    surrogates = any("\ud800" <= char <= "\udfff" for row in rows for char in row.text)
    if surrogates:
        with pytest.raises(InputError, match="lone surrogate"):
            to_table(Document, rows)
    else:
        assert [row for part in to_table(Document, rows).to_batches() for row in from_batch(Document, part)] == rows


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Document(text="abc\ud83dx", id="bad"), ("Document bad", "text", "lone surrogate at character 3", "replace")),
        (Document(text="a", meta={"k": "\udfff"}, id="bad"), ("Document bad", "meta", "lone surrogate")),
        (Document(text="a", meta={"k": (1, 2)}, id="bad"), ("Document bad", "meta", "tuple")),
        (Document(text="a", meta={"k": {"s"}}, id="bad"), ("Document bad", "meta", "set")),
        (Document(text="a", meta={"k": {3: "s"}}, id="bad"), ("Document bad", "key 3")),
        (Document(text=5, id="bad"), ("Document bad", "text = 5", "string")),  # type: ignore[arg-type]
        (Document(text="a", parents=("x", 1), id="bad"), ("Document bad", "parents")),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_stored_is_named(bad: Document, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        to_table(Document, [Document(text="good"), bad, Document(text="good too")])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_numbers_out_of_range_and_of_the_wrong_type_are_named() -> None:
    for field, value in (("token_ids", (1, 2**31)), ("token_ids", (1.5,)), ("k", "1"), ("logprobs", ("x",))):
        row = Completion(**{"prompt_id": "p", "k": 0, "text": "t", "id": "bad", field: value})
        with pytest.raises(InputError, match=rf"Completion bad: {field} = "):
            to_table(Completion, [row])


def test_a_nested_value_is_named_by_its_column() -> None:
    prompt = Prompt.from_text("p")
    chosen = Completion(prompt_id=prompt.id, k=0, text="a\udc00")
    with pytest.raises(InputError, match=r"Pair \w+: chosen has a lone surrogate"):
        to_table(Pair, [Pair(prompt=prompt, chosen=chosen, rejected=chosen)])


def test_other_types_and_names_are_refused() -> None:
    with pytest.raises(InputError, match="Document rows got a Score"):
        to_table(Document, [Document(text="a"), Score(completion_id="c", scorer="s", value=1.0)])
    with pytest.raises(InputError, match="unknown row type 'Elephant'"):
        row_type_named("Elephant")


def test_logprobs_are_stored_as_float32() -> None:
    row = Completion(prompt_id="p", k=0, text="t", logprobs=(-0.1,))
    (back,) = from_batch(Completion, to_table(Completion, [row]).to_batches()[0])
    assert back.logprobs == (-0.10000000149011612,)


@pytest.mark.parametrize("row_type", FIELDS, ids=lambda t: t.__name__)
def test_a_stage_opens_with_datasets(row_type: type, tmp_path: Path) -> None:
    """Also with an empty shard, and where a part of the path looks like a split."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = rows_of(row_type)
    with Store(tmp_path / "test" / "stages").writer("eval-rows", "0" * 24, row_type, 3) as writer:
        for index, part in enumerate((rows[:5], [], rows[5:])):
            writer.write(index, part)
        stage = writer.commit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = datasets.load_dataset("parquet", data_dir=str(stage.path), cache_dir=str(tmp_path / "cache"))
    assert list(table) == ["train"]
    assert table["train"]["id"][:] == [row.id for row in rows]
    if row_type in (Demonstration, Pair, Feedback):
        for found, row in zip(table["train"], rows, strict=True):
            for name, value in row.columns().items():
                assert found[name] == value


def test_the_ecosystem_columns_come_first_and_are_plain() -> None:
    assert schema_of(Demonstration).names[:2] == ["prompt", "completion"]
    assert schema_of(Pair).names[:3] == ["prompt", "chosen", "rejected"]
    assert schema_of(Feedback).names[:5] == ["prompt", "completion", "label", "completions", "labels"]
    for row_type in (Demonstration, Pair, Feedback):
        schema = schema_of(row_type)
        texts = [name for name in ("prompt", "completion", "chosen", "rejected") if name in schema.names]
        assert all(schema.field(name).type == pa.string() for name in texts)
