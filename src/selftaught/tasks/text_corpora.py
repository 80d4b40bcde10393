"""Real text as documents, for models that are pretrained: a directory of JSON lines, a Hub data set, or the sample.

A row whose text, in the column `text` (or `context`, as in XQuAD), is not empty is a document. Its `meta` holds
`domain`, the name of its file without the suffix, and `work`, what it is part of: the first of the columns `doc_id`,
`title` and `file` that the row has, else a hash of the text.

Splits are fixed by a hash of the work: a tenth is `test`, a tenth `dev`. So all segments of a novel are in one split,
and all translations of an XQuAD article (UDHR, one text in many languages, is split by language). Where the data have a
split `train` of their own (a file train.jsonl, or a Hub data set), the splits are theirs; `dev` is `validation` there.

Without data the sample that comes with the package is read: under a megabyte of novels in the public domain.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

from selftaught.errors import InputError
from selftaught.store.tables import Fields, Record, read_table
from selftaught.tasks.sources import read_hub, split_file
from selftaught.text.noise import noised
from selftaught.types import Document, content_id, content_share

Split = Literal["train", "dev", "test"]
SAMPLE = Path(__file__).parent / "samples"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet")
_OPTIONAL: Fields = {"text": str, "context": str, "doc_id": str, "title": str, "file": str}
_LINES = ("wikitext", "Salesforce/wikitext")
"""Hub data sets whose rows are lines of articles, each of which begins with its title: " = Title = "."""
_TITLE = re.compile(r" = [^=\n]+ = \n?")


class Window(NamedTuple):
    """Bytes `start` to `start + len(data)` of a document's UTF-8."""

    document: Document
    start: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCorpus:
    """The text in `data`: a file, a directory of files, or a Hub id (with its configuration `name`).

    `sources` are the files of the directory to read, by name without suffix; all where it is empty. `whole` joins the
    segments of a work that stand next to each other to one document, with a blank line between them.
    """

    data: str | None = None
    name: str | None = None
    sources: tuple[str, ...] = ()
    whole: bool = False

    def documents(self, split: Split = "train", limit: int | None = None) -> Iterator[Document]:
        """Yield a split's documents, source by source, in the order of the data; one is in memory at a time.

        `limit` bounds the bytes of all of them together. Each source has an equal share of it, and the document that
        would exceed the share is cut at a character, so that two runs with one limit read the same bytes.

        Raises InputError where the data cannot be read, a row has no text, or the split holds nothing.
        """
        if limit is not None and limit < 1:
            raise InputError(f"text: limit={limit} leaves no text; give 1 byte or more")
        readers = self._readers(split)
        empty = True
        for domain, records, is_split in readers:
            found = _documents(domain, records, None if is_split else split, self.whole)
            for document in found if limit is None else cut(found, limit // len(readers)):
                empty = False
                yield document
        if empty:
            raise InputError(f"{self.data or SAMPLE}: no document of the split {split}; give more works, or more bytes")

    def _readers(self, split: Split) -> list[tuple[str, Iterable[Record], bool]]:
        """Return (domain, rows, whether the rows are those of the split) of each source."""
        path = Path(self.data or SAMPLE)
        has_splits = path.is_dir() and split_file(path, "train") is not None
        if self.sources and (has_splits or not path.is_dir()):
            raise InputError(f"{path} is no directory with the sources {', '.join(self.sources)}: do not name any")
        if path.is_file():
            return [(_stem(path), read_table(path, {}, _OPTIONAL), False)]
        if not path.is_dir():
            name = "validation" if split == "dev" else split
            records = read_hub(str(self.data), self.name, name, {"text": str})
            return [(str(self.data), _articles(records) if self.data in _LINES else records, True)]
        if has_splits:
            file = next(filter(None, (split_file(path, n) for n in _names(split))), None)
            if file is None:
                raise InputError(f"{path} has a file train, none for {split}: add one named {_names(split)[0]}.jsonl")
            return [(path.name, read_table(file, {}, _OPTIONAL), True)]
        files = {_stem(f): f for f in sorted(path.iterdir()) if f.name.endswith(_SUFFIXES) and f.name[0] != "."}
        unknown = [source for source in self.sources if source not in files]
        if unknown or not files:
            known = ", ".join(files) or "none"
            raise InputError(f"{path} holds no {', '.join(unknown) or 'text'}; its sources are: {known}")
        return [(name, read_table(files[name], {}, _OPTIONAL), False) for name in self.sources or files]


def cut(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    """Yield documents up to `limit` bytes of UTF-8 in all; the last is cut at a character, and has an id of its own."""
    left = limit
    for document in documents:
        data = _encoded(document)
        if len(data) > left:
            text = data[:left].decode(errors="ignore")
            if text:
                yield replace(document, text=text, id="")
            return
        yield document
        left -= len(data)


def windows(documents: Iterable[Document], length: int) -> Iterator[Window]:
    """Yield consecutive windows of at most `length` bytes that cover each document and never cross into the next.

    A window ends before a UTF-8 character that does not fit, unless the character is longer than a window: then it is
    split. An empty document has no window.

    Raises InputError for a length below 1 and for text that UTF-8 cannot hold.

    >>> [w.data.decode() for w in windows([Document(text="naïve"), Document(text="text")], 3)]
    ['na', 'ïv', 'e', 'tex', 't']
    """
    if length < 1:
        raise InputError(f"windows of {length} bytes hold nothing; give a length of 1 or more")
    for document in documents:
        data, start = _encoded(document), 0
        while start < len(data):
            end = min(start + length, len(data))
            while end > start and _is_inside_character(data, end):
                end -= 1
            if end == start:
                end = min(start + length, len(data))
            yield Window(document, start, data[start:end])
            start = end


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedDocuments:
    """Documents with `noise` on a `share` of their characters, as in `noised`, for `Lab.stage`.

    Their parents, and `meta["clean"]`, are the clean documents.
    """

    noise: str
    share: float | None
    seed: int

    def __call__(self, documents: Iterable[Document], counts: Counter[str]) -> Iterator[Document]:
        """Yield `documents` noised, in their order."""
        for document in documents:
            text = noised(document.text, self.noise, self.seed, self.share)
            yield Document(text=text, meta={**document.meta, "clean": document.id}, parents=(document.id,))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowDocuments:
    """Documents cut into the documents of at most `length` bytes that `windows` gives, for `Lab.stage`.

    A window's parent is its document, whose `meta` it has, with `start`, the byte at which it begins.
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 4:
            raise InputError(f"windows of {self.length} bytes would split characters; give a length of 4 or more")

    def __call__(self, documents: Iterable[Document], counts: Counter[str]) -> Iterator[Document]:
        """Yield the windows of `documents`, each with an id of its own though their texts be equal."""
        for window in windows(documents, self.length):
            source, text = window.document, window.data.decode()
            name = content_id("window", source.id, window.start, text)
            yield Document(text=text, meta={**source.meta, "start": window.start}, parents=(source.id,), id=name)


def _is_inside_character(data: bytes, at: int) -> bool:
    return at < len(data) and data[at] & 0xC0 == 0x80


def _encoded(document: Document) -> bytes:
    try:
        return document.text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(document.text[error.start]):04x}"
        raise InputError(f"document {document.id} holds the lone surrogate {half}; replace or remove it") from error


def _documents(domain: str, records: Iterable[Record], split: Split | None, whole: bool) -> Iterator[Document]:
    """Yield the documents of a split, or of all works where `split` is None."""
    rows = ((_work(record), _text(record), record) for record in records)
    for work, group in groupby(rows, key=lambda row: row[0]):
        if split is not None and split_of(work) != split:
            continue
        segments = ((text, record) for _, text, record in group if text)
        if not whole:
            yield from (_document(domain, work, text, record) for text, record in segments)
        elif joined := list(segments):
            yield _document(domain, work, "\n\n".join(text for text, _ in joined), joined[0][1])


def split_of(work: str) -> Split:
    """Return the split of a work: 10% test, 10% dev, 80% train of all works."""
    at = content_share("text", work)
    return "test" if at < 0.1 else "dev" if at < 0.2 else "train"


def _document(domain: str, work: str, text: str, record: Record) -> Document:
    kept = {name: record.fields[name] for name in ("segment", "year") if isinstance(record.fields.get(name), int)}
    return Document(text=text, meta={"domain": domain, "work": work, **kept})


def _work(record: Record) -> str:
    names = ("doc_id", "title", "file")
    return next((record.fields[n] for n in names if record.fields.get(n)), "") or content_id("work", _text(record))


def _text(record: Record) -> str:
    text = record.fields.get("text", record.fields.get("context"))
    if not isinstance(text, str):
        raise InputError(f"{record.where}: no text in the columns 'text' and 'context'; give a document in each row")
    return text


def _articles(lines: Iterable[Record]) -> Iterator[Record]:
    """Yield articles from their lines; each begins with a title of one equals sign."""
    title, where, parts = "", "", list[str]()
    for line in lines:
        text = line.fields["text"]
        if _TITLE.fullmatch(text) and parts:
            yield Record(where, {"title": title, "text": "".join(parts)})
            parts = []
        if _TITLE.fullmatch(text):
            title, where = text.strip(" =\n"), line.where
        if text.strip() or parts:
            parts.append(text if text.endswith("\n") else f"{text}\n")
    if parts:
        yield Record(where or "the first line", {"title": title, "text": "".join(parts)})


def _names(split: Split) -> tuple[str, ...]:
    return ("dev", "valid", "validation") if split == "dev" else (split,)


def _stem(file: Path) -> str:
    return file.name.partition(".")[0]
