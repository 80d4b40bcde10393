import gzip
import json
import lzma
import sys
import types
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.worlds import shared_data

from selftaught.errors import InputError
from selftaught.tasks.text_corpora import SAMPLE, NoisedDocuments, TextCorpus, WindowDocuments, cut, split_of, windows
from selftaught.text.noise import noised
from selftaught.types import Document

SPLITS = ("train", "dev", "test")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def save(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packers = {".gz": gzip.compress, ".xz": lzma.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(lines))


@pytest.fixture
def corpus(tmp_path):
    """Two sources of 40 works of three segments, with the text "SOURCE WORK SEGMENT"."""
    for name in ("letters.jsonl.xz", "tales.jsonl.gz"):
        stem = name.partition(".")[0]
        rows = [{"doc_id": f"{stem}/{i}", "segment": j, "text": f"{stem} {i} {j}"} for i in range(40) for j in range(3)]
        save(tmp_path / name, rows)
    (tmp_path / "README.md").write_text("not a source")
    return str(tmp_path)


def test_splits_are_by_work_and_cover_the_data(corpus):
    parts = {split: list(TextCorpus(data=corpus).documents(split)) for split in SPLITS}
    works = {split: {d.meta["work"] for d in documents} for split, documents in parts.items()}
    assert sum(map(len, works.values())) == len(set().union(*works.values())) == 80
    assert sum(map(len, parts.values())) == 240
    assert all(split_of(work) == split for split, found in works.items() for work in found)
    assert Counter(map(split_of, map(str, range(10_000)))).most_common()[0][1] == pytest.approx(8000, rel=0.02)
    first = parts["train"][0]
    assert first.meta == {"domain": "letters", "work": first.meta["work"], "segment": 0}


def test_sources_and_whole_works(corpus):
    tales = list(TextCorpus(data=corpus, sources=("tales",), whole=True).documents())
    assert {d.meta["domain"] for d in tales} == {"tales"}
    assert all(d.text == "\n\n".join(f"{d.meta['work'].replace('/', ' ')} {j}" for j in range(3)) for d in tales)
    assert len({d.meta["work"] for d in tales}) == len(tales)


def test_a_limit_is_shared_by_the_sources_and_is_a_beginning(corpus):
    everything = list(TextCorpus(data=corpus).documents())
    some = list(TextCorpus(data=corpus).documents(limit=101))
    sizes = Counter()
    for document in some:
        sizes[document.meta["domain"]] += len(document.text.encode())
    assert sizes == {"letters": 50, "tales": 50}
    for domain in sizes:
        ours, all_of_it = ("".join(d.text for d in ds if d.meta["domain"] == domain) for ds in (some, everything))
        assert all_of_it.startswith(ours)
    assert {d.id for d in some} - {d.id for d in everything}, "a cut document is another document"


def test_documents_are_streamed(corpus):
    """A row that is wrong is met only when the stream gets there."""
    with gzip.open(f"{corpus}/tales.jsonl.gz", "at") as file:
        file.write('{"doc_id": "tales/x", "words": "none"}\n')
    stream = TextCorpus(data=corpus, sources=("tales",)).documents()
    assert len(list(islice(stream, 5))) == 5
    with pytest.raises(InputError, match=r"line 121: no text in the columns 'text' and 'context'"):
        list(stream)


def test_empty_rows_are_left_out_and_works_named(tmp_path):
    rows = [{"title": "A", "context": "x"}, {"file": "eng.txt", "text": ""}, {"text": "no name"}]
    save(tmp_path / "mixed.jsonl", rows)
    found = [d for split in SPLITS for d in _documents(tmp_path / "mixed.jsonl", split)]
    assert {d.text: d.meta["work"] for d in found}.keys() == {"x", "no name"}
    assert next(d for d in found if d.text == "x").meta == {"domain": "mixed", "work": "A"}


def _documents(data, split):
    try:
        yield from TextCorpus(data=str(data)).documents(split)
    except InputError as error:
        assert "no document of the split" in str(error)


def test_splits_of_the_data_are_kept(tmp_path):
    for name in ("train", "valid", "test"):
        save(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(5)])
    for split, name in (("train", "train"), ("dev", "valid"), ("test", "test")):
        assert [d.text for d in TextCorpus(data=str(tmp_path)).documents(split)] == [f"{name} {i}" for i in range(5)]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(InputError, match=r"none for test: add one named test\.jsonl"):
        list(TextCorpus(data=str(tmp_path)).documents("test"))
    with pytest.raises(InputError, match="do not name any"):
        list(TextCorpus(data=str(tmp_path), sources=("train",)).documents())


LINES = ["", " = One = \n", "a\n", " = = Part = = \n", "b\n", "", " = Two = \n", "c\n"]


def test_the_hub(monkeypatch):
    """WikiText's rows are lines, and its validation split is dev; other sets have a document in each row."""
    asked = []

    def load_dataset(data, name, split):
        asked.append((data, name, split))
        return [{"text": line} for line in LINES]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    articles = list(TextCorpus(data="Salesforce/wikitext", name="wikitext-2-raw-v1").documents("dev"))
    assert [(d.text, d.meta["work"]) for d in articles] == [
        (" = One = \na\n = = Part = = \nb\n\n", "One"),
        (" = Two = \nc\n", "Two"),
    ]
    assert [d.text for d in TextCorpus(data="someone/texts").documents("test")] == [line for line in LINES if line]
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "validation"), ("someone/texts", None, "test")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": ("songs",)}, "holds no songs; its sources are: letters, tales"),
        ({"data": "no/where/at/all"}, "does not exist"),
        ({"data": "someone/texts", "sources": ("a",)}, "is no directory with the sources a"),
    ],
)
def test_bad_places(corpus, fields, message):
    with pytest.raises(InputError, match=message):
        list(TextCorpus(**{"data": corpus} | fields).documents())


def test_bad_limits(corpus, tmp_path):
    with pytest.raises(InputError, match="limit=0"):
        list(TextCorpus(data=corpus).documents(limit=0))
    with pytest.raises(InputError, match="no document of the split train"):
        list(TextCorpus(data=corpus).documents(limit=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no text"):
        list(TextCorpus(data=str(tmp_path / "empty")).documents())


def test_the_sample_needs_no_data():
    """Each split has some of it, works and authors are in one split only, and it stays small."""
    parts = {split: list(TextCorpus().documents(split)) for split in SPLITS}
    assert {split: len(documents) for split, documents in parts.items()} == {"train": 91, "dev": 14, "test": 21}
    authors = {s: {d.meta["work"].split("/")[1].split("_")[0] for d in ds} for s, ds in parts.items()}
    assert sum(map(len, authors.values())) == len(set().union(*authors.values())) == 18
    size = sum(len(d.text.encode()) for documents in parts.values() for d in documents)
    assert size == 947_648 and all(d.meta["domain"] == "novels" for d in parts["dev"])
    assert sum(f.stat().st_size for f in SAMPLE.iterdir()) < 400_000 and (SAMPLE / "README.md").exists()
    assert sum(len(d.text.encode()) for d in TextCorpus().documents(limit=100_000)) == 100_000


@given(st.lists(texts, max_size=5), st.integers(1, 60))
def test_cut_is_the_beginning_of_the_text(given_texts, limit):
    """Within 3 bytes of the limit, for a character has at most 4."""
    kept = "".join(d.text for d in cut((Document(text=text) for text in given_texts), limit))
    everything = "".join(given_texts)
    assert everything.startswith(kept)
    assert min(limit, len(everything.encode())) - 3 <= len(kept.encode()) <= limit


def test_windows_by_hand():
    """At 3 bytes é, of 2, is kept whole; 😀, of 4, is split, as it fits no window, and what follows goes on there."""
    found = list(windows([Document(text="aéb"), Document(text="a😀b"), Document(text="")], 3))
    emoji = "😀".encode()
    assert [(w.start, w.data) for w in found] == [
        (0, "aé".encode()),
        (3, b"b"),
        (0, b"a"),
        (1, emoji[:3]),
        (4, emoji[3:] + b"b"),
    ]
    with pytest.raises(InputError, match="windows of 0 bytes"):
        list(windows([], 0))
    with pytest.raises(InputError, match=r"lone surrogate .ud83d"):
        list(windows([Document(text="\ud83d")], 3))


@given(st.lists(texts, max_size=4), st.integers(1, 12))
def test_windows_cover_documents_and_split_no_character_that_fits(given_texts, length):
    documents = [Document(text=text, parents=(str(i),)) for i, text in enumerate(given_texts)]
    found = list(windows(documents, length))
    for document in documents:
        own = [w for w in found if w.document is document]
        assert b"".join(w.data for w in own) == document.text.encode()
        assert [w.start for w in own] == [sum(len(w.data) for w in own[:i]) for i in range(len(own))]
        assert all(1 <= len(w.data) <= length for w in own)
        assert all(len(a.data) > length - 4 for a in own[:-1])
        if length >= 4:
            assert "".join(w.data.decode() for w in own) == document.text


def test_windows_are_lazy():
    def endless():
        while True:
            yield Document(text="abcdef")

    assert [w.data for w in islice(windows(endless(), 4), 3)] == [b"abcd", b"ef", b"abcd"]


def test_windows_as_documents_have_their_place_and_ids_of_their_own():
    source = Document(text="naïve naïve ", meta={"domain": "d"})
    found = list(WindowDocuments(length=7)([source], Counter()))
    assert [d.text for d in found] == ["naïve ", "naïve "]
    assert [d.meta for d in found] == [{"domain": "d", "start": 0}, {"domain": "d", "start": 7}]
    assert {d.parents for d in found} == {(source.id,)}
    assert len({d.id for d in found}) == 2
    assert found[0].id != next(WindowDocuments(length=8)([source], Counter())).id
    with pytest.raises(InputError, match="windows of 3 bytes would split characters"):
        WindowDocuments(length=3)


def test_the_real_corpus():
    """All five sources open; a novel is in one split."""
    data = str(shared_data("text_corpus_en"))
    parts = {split: list(TextCorpus(data=data).documents(split, limit=1_000_000)) for split in SPLITS}
    for documents in parts.values():
        sizes = Counter()
        for document in documents:
            sizes[document.meta["domain"]] += len(document.text.encode())
        assert set(sizes) == {"eltec", "novels", "speeches", "tinystories", "wikipedia"}
        assert max(sizes.values()) <= 200_000 and sum(sizes.values()) > 700_000
    works = [{d.meta["work"] for d in documents} for documents in parts.values()]
    assert sum(map(len, works)) == len(set().union(*works))


def test_the_real_small_sets():
    """Parallel paragraphs of XQuAD are in the same split, whatever their language."""
    data = str(shared_data("text_multilingual"))
    english, greek = (
        [d.meta["work"] for d in TextCorpus(data=data, sources=(name,)).documents("test")]
        for name in ("xquad_en", "xquad_el")
    )
    assert english == greek and len(set(english)) >= 2
    everything = [d for split in SPLITS for d in TextCorpus(data=data, sources=("udhr",)).documents(split)]
    assert len(everything) == len({d.meta["work"] for d in everything}) == 387, "one of the 388 versions is empty"
    data = str(shared_data("wikitext2"))
    assert sum(1 for split in SPLITS for _ in TextCorpus(data=data).documents(split)) == 122


def test_noise_leads_back_to_the_clean_document():
    clean = [Document(text="An ant.", meta={"domain": "a"}), Document(text="An ant.\n", meta={})]
    found = list(NoisedDocuments(noise="drop", share=0.4, seed=3)(clean, Counter()))
    assert [d.text for d in found] == [noised(d.text, "drop", 3, 0.4) for d in clean]
    assert [(d.parents, d.meta["clean"]) for d in found] == [((d.id,), d.id) for d in clean]
    assert found[0].meta["domain"] == "a"
