import gzip
import json
import pickle
import sys
import types

import pytest
from tests.worlds import shared_data

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.hh_rlhf import HARMLESS, HHRLHF

CALM, SHARP = "There, there.", "Go away."


def row(i, chosen=CALM, rejected=SHARP):
    turns = [("user", f"I dropped cup {i}."), ("assistant", "Oh no!"), ("user", "It broke.")]
    return {"prompt": [{"role": r, "content": c} for r, c in turns], "chosen": chosen, "rejected": rejected}


def transcripts(i, chosen=CALM, rejected=SHARP):
    before = f"\n\nHuman: I dropped cup {i}.\n\nAssistant: Oh no!\n\nHuman: It broke."
    return {name: f"{before}\n\nAssistant: {text}" for name, text in (("chosen", chosen), ("rejected", rejected))}


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "pairs.jsonl.gz", [row(i) for i in range(200)])
    return str(tmp_path)


def asked(prompts):
    return {prompt.messages for prompt in prompts}


def test_a_pair_keeps_all_turns(data):
    pair = HHRLHF(data=data).pairs("test")[0]
    assert [m.role for m in pair.prompt.messages] == ["user", "assistant", "user"]
    assert pair.prompt.messages[1].content == "Oh no!"
    assert (pair.chosen.text, pair.rejected.text) == (CALM, SHARP)
    assert pair.chosen.id != pair.rejected.id and pair.chosen.prompt_id == pair.prompt.id


def test_splits_are_disjoint_and_fixed_by_the_prompts(data, tmp_path):
    task = HHRLHF(data=data)
    parts = [asked(prompts) for prompts in (task.train(), task.dev(), task.test())]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 200
    assert 10 <= len(parts[1]) <= 35 and 25 <= len(parts[2]) <= 60
    # Rows in another order, with other answers and more of them, leave every prompt where it was.
    other = tmp_path / "other" / "pairs.jsonl.gz"
    write(other, [row(i, "Hush.", "Pah.") for i in reversed(range(300))])
    moved = HHRLHF(data=str(other.parent))
    assert asked(moved.test()) >= parts[2] and asked(moved.dev()) >= parts[1]
    assert asked(moved.train()).isdisjoint(parts[1] | parts[2])


def test_orders_follow_seeds_and_pools_do_not(data):
    task = HHRLHF(data=data, limit=40)
    assert task.train(seed=1) != task.train(seed=2)
    assert asked(task.train(seed=1)) == asked(task.train(seed=2)) and len(task.train()) == 40
    assert task.train(5, seed=1) + task.train(90, seed=1, start=5) == task.train(seed=1)
    shown = task.demonstrations(3, seed=1)
    assert [d.prompt for d in shown] == task.train(3, seed=1) and {d.completion.text for d in shown} == {CALM}


def test_a_repeated_prompt_stays_in_one_split_with_ids_of_its_own(tmp_path):
    write(tmp_path / "pairs.jsonl.gz", [row(i, chosen=f"{CALM} {n}") for n in range(2) for i in range(40)])
    task = HHRLHF(data=str(tmp_path))
    parts = [asked(prompts) for prompts in (task.train(), task.dev(), task.test())]
    assert sum(map(len, parts)) == 40
    ids = {p.prompt.id for split in ("train", "dev", "test") for p in task.pairs(split)}
    assert len(ids) == 80


def test_rows_that_make_no_pair_are_counted(tmp_path):
    bad = [row(1, chosen=" "), row(2, rejected=""), row(3, CALM, CALM), {**row(4), "prompt": row(4)["prompt"][:2]}]
    write(tmp_path / "pairs.jsonl.gz", [*bad, {**row(5), "prompt": []}, *(row(i) for i in range(10, 30))])
    task = HHRLHF(data=str(tmp_path))
    assert len(task.train()) + len(task.dev()) + len(task.test()) == 20
    ending = "the prompt does not end with the user"
    assert task.dropped == {"an empty answer": 2, "two equal answers": 1, ending: 2}


def test_transcripts_give_the_same_pairs(data, tmp_path):
    for place in (tmp_path / "published" / HARMLESS, tmp_path / "flat"):
        place.mkdir(parents=True)
        write(place / "train.jsonl.gz", [transcripts(i) for i in range(200)])
    found = [HHRLHF(data=str(tmp_path / name)) for name in ("published", "flat")]
    for split in ("train", "dev", "test"):
        assert HHRLHF(data=data).pairs(split) == found[0].pairs(split) == found[1].pairs(split)


def test_a_test_file_is_the_test_split(tmp_path):
    write(tmp_path / "train.jsonl.gz", [transcripts(i) for i in range(100)])
    write(tmp_path / "test.jsonl.gz", [transcripts(i) for i in range(95, 120)])
    task = HHRLHF(data=str(tmp_path))
    assert len(task.test()) == 25 and len(task.train()) + len(task.dev()) == 95
    assert asked(task.test()).isdisjoint(asked(task.train()) | asked(task.dev()))


def test_transcripts_that_make_no_pair_are_counted(tmp_path):
    apart = {**transcripts(1), "rejected": transcripts(2)["rejected"]}
    open_end = {name: f"{text}\n\nHuman: And now?" for name, text in transcripts(3).items()}
    alone = {"chosen": "\n\nAssistant: Hello.", "rejected": "\n\nAssistant: You again."}
    write(tmp_path / "train.jsonl.gz", [apart, open_end, alone, *(transcripts(i) for i in range(10, 30))])
    reasons = ("dialogues that differ before the last turn", "no answer at the end")
    expected = dict.fromkeys((*reasons, "the prompt does not end with the user"), 1)
    assert HHRLHF(data=str(tmp_path)).dropped == expected


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"chosen": "Hello", "rejected": "Hi"}, "line 2: 'chosen' is no transcript, it begins with 'Hello'"),
        ({"chosen": "x\n\nHuman: a\n\nAssistant: b", "rejected": ""}, "'chosen' is no transcript, it begins with 'x'"),
        ({"chosen": "a"}, "line 2: 'rejected' is missing"),
        ({**row(1), "prompt": ["hi"]}, "line 2: 'hi' is no turn"),
        ({**row(1), "prompt": [{"role": "wizard", "content": "hi"}]}, "'wizard'.* is no turn"),
        ({**row(1), "prompt": [{"role": "user", "content": None}]}, "is no turn"),
    ],
)
def test_a_bad_row_is_named(tmp_path, bad, message):
    write(tmp_path / "pairs.jsonl.gz", [row(0), bad])
    with pytest.raises(InputError, match=message):
        HHRLHF(data=str(tmp_path)).train()


def test_bad_places(tmp_path):
    for data, message in ((tmp_path, r"holds neither pairs\.jsonl\.gz"), (tmp_path / "no" / "where", "does not exist")):
        with pytest.raises(InputError, match=message):
            load_task(TaskSpec(name="hh_rlhf", data=str(data))).train()
    with pytest.raises(InputError, match="limit=0"):
        load_task(TaskSpec(name="hh_rlhf", limit=0))


def test_the_hub(monkeypatch):
    calls = []

    def load_dataset(data, name, split, data_dir):
        calls.append((data, name, split, data_dir))
        return [transcripts(i) for i in (range(50) if split == "train" else range(50, 60))]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = load_task(TaskSpec(name="hh_rlhf"))
    assert len(task.test()) == 10 and len(task.train()) + len(task.dev()) == 50
    assert calls == [("Anthropic/hh-rlhf", None, split, HARMLESS) for split in ("train", "test")]


def test_it_crosses_processes(data):
    task = HHRLHF(data=data, limit=5)
    task.train()
    assert len(pickle.dumps(task)) < 1000 and pickle.loads(pickle.dumps(task)) == task


def test_the_real_file():
    task = HHRLHF(data=str(shared_data("hh_rlhf_harmless")))
    parts = [task.pairs(split) for split in ("train", "dev", "test")]
    assert sum(map(len, parts)) == 2303 and task.dropped == {"an empty answer": 4}
    asked_in = [asked(pair.prompt for pair in part) for part in parts]
    assert sum(map(len, asked_in)) == len(set().union(*asked_in))
    assert all(p.prompt.messages[-1].role == "user" for part in parts for p in part)
    assert max(len(p.prompt.messages) for part in parts for p in part) > 10
