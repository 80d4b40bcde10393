import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.samples import completions, prompts, scores

from selftaught.errors import InputError
from selftaught.store.groups import Groups
from selftaught.store.stage import Stage, Store
from selftaught.types import Completion, Group, Prompt, Score, Verdict, content_id

QUESTIONS = prompts(6)
BASE = list(completions(QUESTIONS, 3))
HOT = list(completions(QUESTIONS[1:4:2], 2, "hot"))  # for some prompts only
VOTES = scores(BASE)


def verdicts_on(rows: list[Completion]) -> list[Verdict]:
    pairs = pairwise(rows)
    return [
        Verdict(prompt_id=a.prompt_id, first=a.id, second=b.id, winner="first", scorer="judge")
        for a, b in pairs
        if a.prompt_id == b.prompt_id
    ]


def stored(root: Path, name: str, rows: list, row_type: type, shards: int = 2) -> Stage:
    with Store(root).writer(name, content_id(name), row_type, shards) as writer:
        for i in range(shards):
            writer.write(i, rows[len(rows) * i // shards : len(rows) * (i + 1) // shards])
        return writer.commit()


def expected(prompts: list[Prompt], *tables: list) -> list[Group]:
    groups = []
    for prompt in prompts:
        rows = [[c for c in table if c.prompt_id == prompt.id] for table in tables[0]]
        mine = tuple(c for table in rows for c in table)
        ids = {c.id for c in mine}
        told = tuple(s for table in tables[1] for s in table if s.completion_id in ids)
        judged = tuple(v for table in tables[2] for v in table if v.prompt_id == prompt.id)
        groups.append(Group(prompt=prompt, completions=mine, scores=told, verdicts=judged))
    return groups


@pytest.mark.parametrize("on_disk", [False, True])
def test_groups_join_all_tables_in_prompt_order(tmp_path: Path, on_disk: bool) -> None:
    # Scores of one pass over both tables of completions come group by group.
    both = scores([c for p in QUESTIONS for t in (BASE, HOT) for c in t if c.prompt_id == p.id], "verifier")
    judged = verdicts_on(BASE)
    parts = [
        (QUESTIONS, Prompt),
        (BASE, Completion),
        (HOT, Completion),
        (VOTES, Score),
        (both, Score),
        (judged, Verdict),
    ]
    if on_disk:
        tables = [stored(tmp_path, f"t{i}", rows, kind) for i, (rows, kind) in enumerate(parts)]
    else:
        tables = [rows for rows, _ in parts]
    asked, base, hot, votes, verified, said = tables
    groups = Groups(prompts=asked, completions=(base, hot), scores=(votes, verified), verdicts=(said,))
    want = expected(QUESTIONS, (BASE, HOT), (VOTES, both), (judged,))
    assert len(groups) == 6
    assert list(groups) == want
    assert list(groups) == want
    assert [len(g.completions) for g in want] == [3, 5, 3, 5, 3, 3]
    for start in range(7):
        for stop in range(start, 8):
            part = groups.slice(start, stop)
            assert list(part) == want[start:stop]
            assert len(part) == len(want[start:stop])
    assert list(groups.slice(1, 5).slice(1, 3)) == want[2:4]


def test_prompts_alone_are_groups(tmp_path: Path) -> None:
    assert list(Groups(prompts=QUESTIONS)) == [Group(prompt=p, completions=()) for p in QUESTIONS]
    assert list(Groups(prompts=QUESTIONS).slice(2, 3)) == [Group(prompt=QUESTIONS[2], completions=())]
    assert list(Groups(prompts=[], completions=([],))) == []


def test_several_scores_per_completion_stay_together() -> None:
    steps = [Score(completion_id=c.id, scorer="steps", value=1.0, span=(i, i + 1)) for c in BASE for i in range(c.k)]
    groups = list(Groups(prompts=QUESTIONS, completions=(BASE,), scores=(steps,)))
    assert [len(g.scores) for g in groups] == [3] * 6
    assert [s for g in groups for s in g.scores] == steps


MISALIGNED = {
    "shuffled completions": {"completions": (BASE[3:6] + BASE[:3] + BASE[6:],)},
    "completions of other prompts": {"completions": (list(completions(prompts(7)[6:], 1)),)},
    "interleaved completions": {"completions": (BASE[::3] + BASE[1::3],)},
    "scores of other completions": {"completions": (BASE,), "scores": (scores(HOT),)},
    "shuffled scores": {"completions": (BASE,), "scores": (VOTES[::-1],)},
    "scores without completions": {"scores": (VOTES,)},
    "verdicts on other prompts": {"completions": (BASE,), "verdicts": (verdicts_on(BASE)[::-1],)},
}


@pytest.mark.parametrize("tables", MISALIGNED.values(), ids=MISALIGNED)
def test_tables_that_do_not_fit_are_named_before_the_first_group(tmp_path: Path, tables: dict) -> None:
    kinds = {"completions": Completion, "scores": Score, "verdicts": Verdict}
    on_disk = {
        name: tuple(stored(tmp_path, f"{name}{i}", rows, kinds[name]) for i, rows in enumerate(parts))
        for name, parts in tables.items()
    }
    for kind in (tables, on_disk):
        groups = Groups(prompts=QUESTIONS, **kind)
        with pytest.raises(
            InputError, match=r"belongs to (prompt|completion) .* does not have at this place; give"
        ) as e:
            next(iter(groups))
        assert "\n" not in str(e.value)
        with pytest.raises(InputError):
            list(groups)
    assert str(tmp_path) in str(e.value)


def test_the_row_that_does_not_fit_is_counted() -> None:
    rows = [*BASE[:4], BASE[0], *BASE[4:]]
    with pytest.raises(InputError, match=rf"row 4 \({BASE[0].id}\) belongs to prompt {QUESTIONS[0].id}"):
        list(Groups(prompts=QUESTIONS, completions=(rows,)))


def test_a_prompt_twice_is_refused() -> None:
    with pytest.raises(InputError, match="number_repeats"):
        list(Groups(prompts=[*QUESTIONS[:2], QUESTIONS[1]], completions=(BASE[:6],)))


def test_keys_depend_on_tables_roles_and_part(tmp_path: Path) -> None:
    asked, base, votes = (
        stored(tmp_path, name, rows, kind)
        for name, rows, kind in (("p", QUESTIONS, Prompt), ("c", BASE, Completion), ("s", VOTES, Score))
    )
    whole = Groups(prompts=asked, completions=(base,), scores=(votes,))
    again = Groups(prompts=asked, completions=(base,), scores=(votes,))
    assert whole.key == again.key
    assert whole.parents == (asked.key, base.key, votes.key)
    others = [
        Groups(prompts=asked, completions=(base,)),
        Groups(prompts=asked, scores=(votes,), completions=()),
        whole.slice(0, 3),
        Groups(prompts=QUESTIONS, completions=(base,), scores=(votes,)),
        Groups(prompts=asked, completions=(base, base), scores=(votes,)),
    ]
    assert len({whole.key, *(g.key for g in others)}) == 6
    changed = [*VOTES[:-1], Score(completion_id=VOTES[-1].completion_id, scorer="votes", value=9.0)]
    assert (
        Groups(prompts=QUESTIONS, completions=(BASE,), scores=(VOTES,)).key
        != Groups(prompts=QUESTIONS, completions=(BASE,), scores=(changed,)).key
    )


def test_a_slice_reads_only_its_rows(tmp_path: Path) -> None:
    asked = prompts(400)
    rows = list(completions(asked, 4))
    with (
        mock.patch("selftaught.store.stage._ROWS_AT_ONCE", 10),
        mock.patch("selftaught.store.stage._ROWS_PER_GROUP", 20),
    ):
        groups = Groups(
            prompts=stored(tmp_path, "p", asked, Prompt), completions=(stored(tmp_path, "c", rows, Completion),)
        )
    len(list(groups))
    from selftaught.store import stage

    with mock.patch.object(stage, "from_batch", side_effect=stage.from_batch) as built:
        assert [g.prompt for g in groups.slice(200, 205)] == asked[200:205]
    assert sum(call.args[1].num_rows for call in built.call_args_list) == 5 + 20


def test_fields_are_left_out_of_completions_only(tmp_path: Path) -> None:
    told = [Score(completion_id=c.id, scorer="s", value=1.0, note="kept") for c in BASE]
    tables = [
        stored(tmp_path, name, rows, kind)
        for name, rows, kind in (("p", QUESTIONS, Prompt), ("c", BASE, Completion), ("s", told, Score))
    ]
    whole = Groups(prompts=tables[0], completions=(tables[1],), scores=(tables[2],))
    bare = whole.without("token_ids", "logprobs", "latents", "discarded")
    stripped = tuple(replace(c, token_ids=None) for c in BASE[:3])
    first = next(iter(bare))
    assert first == Group(prompt=QUESTIONS[0], completions=stripped, scores=tuple(told[:3]))
    assert first.completions[0].latents is not first.completions[1].latents
    assert bare.key != whole.key
    assert list(bare.slice(2, 4)) == list(bare)[2:4]
    for name in ("id", "text", "parents", "nothing"):
        with pytest.raises(InputError, match=f"Completion rows cannot be read without '{name}'"):
            list(whole.without(name))


@pytest.mark.parametrize("on_disk", [False, True])
def test_tables_without_scores_of_one_scorer_are_left_out(tmp_path: Path, on_disk: bool) -> None:
    asked = prompts(4)
    samples = [Completion(prompt_id=p.id, k=k, text=f"{p.id} {k}") for p in asked for k in range(2)]
    first, second = (
        [Score(completion_id=c.id, scorer=name, value=1.0) for c in samples for name in names]
        for names in (("a", "b"), ("c",))
    )
    tables = [asked, samples, first, second]
    if on_disk:
        types = (Prompt, Completion, Score, Score)
        tables = [stored(tmp_path, f"t{i}", rows, t) for i, (t, rows) in enumerate(zip(types, tables, strict=True))]
    whole = Groups(prompts=tables[0], completions=(tables[1],), scores=(tables[2], tables[3]))
    for scorer, left in (("a", {"a", "b"}), ("b", {"a", "b"}), ("c", {"c"}), ("d", set())):
        groups = list(whole.scored_by(scorer))
        assert [g.completions for g in groups] == [g.completions for g in whole]
        assert all({s.scorer for s in g.scores} == left for g in groups)
        assert list(whole.slice(1, 3).scored_by(scorer)) == groups[1:3]


def test_streaming_keeps_memory_flat(tmp_path: Path) -> None:
    """Ten times the rows, the same peak of Python objects (a list of them all would be ten times larger)."""
    peaks = []
    for count in (1000, 10_000):
        asked = prompts(count)
        root = tmp_path / str(count)
        with (
            mock.patch("selftaught.store.stage._ROWS_AT_ONCE", 250),
            mock.patch("selftaught.store.stage._ROWS_PER_GROUP", 500),
        ):
            tables = [
                stored(root, "p", asked, Prompt, 4),
                stored(root, "c", list(completions(asked, 4)), Completion, 4),
                stored(root, "s", scores(list(completions(asked, 4))), Score, 4),
            ]
        groups = Groups(prompts=tables[0], completions=(tables[1],), scores=(tables[2],))
        tracemalloc.start()
        assert sum(len(g.scores) for g in groups) == 4 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 8 * 3 * 10_000, peaks


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), max_size=8))
def test_any_counts_of_rows_join(counts: list[tuple[int, int, int]]) -> None:
    asked = prompts(len(counts))
    base = [c for p, (k, _, _) in zip(asked, counts, strict=True) for c in completions([p], k)]
    hot = [c for p, (_, k, _) in zip(asked, counts, strict=True) for c in completions([p], k, "hot")]
    told = [
        s
        for p, (_, _, n) in zip(asked, counts, strict=True)
        for c in [*base, *hot]
        if c.prompt_id == p.id
        for s in [Score(completion_id=c.id, scorer=str(i), value=None) for i in range(n)]
    ]
    groups = Groups(prompts=asked, completions=(base, hot), scores=(told,))
    assert list(groups) == expected(asked, (base, hot), (told,), ())
