"""Prompts joined with their completions, scores and verdicts: a stream of groups, never a list of them."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

from selftaught.errors import InputError
from selftaught.types import Completion, Group, Prompt, Score, Verdict, content_id

if TYPE_CHECKING:
    # Methods import this module: it must not bring pyarrow, which takes a quarter of a second.
    from selftaught.store.stage import Stage

Source: TypeAlias = "Stage[Any] | Sequence[Any]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Groups in the order of `prompts`, read anew at every iteration. `len` is the number of prompts.

    Every table lists its rows in the order of the prompts (scores in the order of their groups); a prompt without
    rows in a table is a group without them. Before the first group, the id columns are read once to see that all
    tables fit; InputError names the table, the row and the id that do not. Memory: 8 bytes per prompt and table.
    """

    prompts: "Stage[Prompt] | Sequence[Prompt]"
    completions: "tuple[Stage[Completion] | Sequence[Completion], ...]" = ()
    scores: "tuple[Stage[Score] | Sequence[Score], ...]" = ()
    verdicts: "tuple[Stage[Verdict] | Sequence[Verdict], ...]" = ()
    start: int = 0
    stop: int | None = None
    left_out: tuple[str, ...] = ()
    _starts: list["array[int]"] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return self._end - self.start

    @property
    def _end(self) -> int:
        return len(self.prompts) if self.stop is None else self.stop

    @property
    def parents(self) -> tuple[str, ...]:
        """The keys of all tables, prompts first."""
        return tuple(_key(source) for source in (self.prompts, *self._tables()))

    @property
    def key(self) -> str:
        """A key of the whole: of the tables, their roles and the part taken."""
        roles = [len(self.completions), len(self.scores), len(self.verdicts)]
        return content_id("groups", self.parents, roles, self.start, self._end, sorted(self.left_out))

    def slice(self, start: int, stop: int) -> "Groups":
        """Return the groups `start` to `stop` (left out) as a view: a worker's share. Reads only their rows."""
        low, high = min(self.start + start, self._end), min(self.start + stop, self._end)
        self._align()
        return replace(self, start=low, stop=high)

    def without(self, *fields: str) -> "Groups":
        """Return the same groups whose completions leave out optional fields such as `token_ids` and `logprobs`.

        A scorer that looks at the text alone reads them several times faster. Store what it makes of them, never the
        completions themselves. Tables in memory are given as they are.
        """
        return replace(self, left_out=fields)

    def scored_by(self, scorer: str) -> "Groups":
        """Return the same groups without those tables of scores that hold none by `scorer`."""
        self._align()
        first, last = len(self.completions), len(self.completions) + len(self.scores)
        kept = [i for i, table in enumerate(self.scores) if _holds(table, scorer)]
        starts = [*self._starts[:first], *(self._starts[first + i] for i in kept), *self._starts[last:]]
        return replace(self, scores=tuple(self.scores[i] for i in kept), _starts=starts)

    def __iter__(self) -> Iterator[Group]:
        self._align()
        left_out = [*[self.left_out] * len(self.completions), *[()] * (len(self.scores) + len(self.verdicts))]
        readers = [
            (_rows(source, starts[self.start], starts[self._end], fields), starts)
            for source, starts, fields in zip(self._tables(), self._starts, left_out, strict=True)
        ]
        ends = (len(self.completions), len(self.completions) + len(self.scores))
        for i, prompt in enumerate(_rows(self.prompts, self.start, self._end), self.start):
            parts = [tuple(islice(rows, starts[i + 1] - starts[i])) for rows, starts in readers]
            yield Group(
                prompt=prompt,
                completions=_joined(parts[: ends[0]]),
                scores=_joined(parts[ends[0] : ends[1]]),
                verdicts=_joined(parts[ends[1] :]),
            )

    def _tables(self) -> tuple[Source, ...]:
        return (*self.completions, *self.scores, *self.verdicts)

    def _align(self) -> None:
        """Fill `_starts`: for every table, the row at which each prompt's rows begin."""
        if self._starts or not self._tables():
            return
        completions = [_Cursor(source, "prompt_id", "id") for source in self.completions]
        scores = [_Cursor(source, "completion_id", "id") for source in self.scores]
        verdicts = [_Cursor(source, "prompt_id", "id") for source in self.verdicts]
        previous = None
        for (prompt_id,) in _columns(self.prompts, "id"):
            if prompt_id == previous:
                raise InputError(f"{_name(self.prompts)}: prompt {prompt_id} is there twice; use types.number_repeats")
            previous = prompt_id
            ids = {row_id for cursor in completions for row_id in cursor.take({prompt_id})}
            for cursor in scores:
                cursor.take(ids)
            for cursor in verdicts:
                cursor.take({prompt_id})
        cursors = [*completions, *scores, *verdicts]
        for cursor in cursors:
            cursor.finish(_name(self.prompts))
        self._starts.extend(cursor.starts for cursor in cursors)


class _Cursor:
    """Walks a table group by group, noting where each group's rows begin."""

    def __init__(self, source: Source, link: str, own: str) -> None:
        self.starts = array("q", [0])
        self._source = source
        self._link = link
        self._stream = _columns(source, link, own)
        self._next = next(self._stream, None)

    def take(self, links: set[str]) -> list[str]:
        """Pass the rows that belong to one of `links` and return their ids."""
        taken = []
        while self._next is not None and self._next[0] in links:
            taken.append(self._next[1])
            self._next = next(self._stream, None)
        self.starts.append(self.starts[-1] + len(taken))
        return taken

    def finish(self, prompts: str) -> None:
        """Raise InputError if a row belonged to no group at its place."""
        if self._next is not None:
            what = self._link.removesuffix("_id")
            raise InputError(
                f"{_name(self._source)}: row {self.starts[-1]} ({self._next[1]}) belongs to {what} {self._next[0]}, "
                f"which {prompts} does not have at this place; give tables made from these prompts, in their order"
            )


def _rows(source: Source, start: int, stop: int, without: tuple[str, ...] = ()) -> Iterator[Any]:
    return iter(source[start:stop]) if isinstance(source, Sequence) else source.slice(start, stop, without)


def _joined(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    return parts[0] if len(parts) == 1 else tuple(chain.from_iterable(parts))


def _columns(source: Source, *names: str) -> Iterator[tuple[str, ...]]:
    if isinstance(source, Sequence):
        return (tuple(getattr(row, name) for name in names) for row in source)
    return chain.from_iterable(zip(*batch, strict=True) for batch in source.columns(*names))


def _holds(source: Source, scorer: str) -> bool:
    if isinstance(source, Sequence):
        return any(row.scorer == scorer for row in source)
    return any(scorer in scorers for (scorers,) in source.columns("scorer"))


def _name(source: Source) -> str:
    if not isinstance(source, Sequence):
        return str(source.path)
    return f"the {len(source)} {type(source[0]).__name__} rows given" if source else "the empty table given"


def _key(source: Source) -> str:
    return content_id("rows", [repr(row) for row in source]) if isinstance(source, Sequence) else source.key
