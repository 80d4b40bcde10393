import json
import math
from pathlib import Path

import pytest
from tests.store.samples import prompts

from selftaught.errors import InputError
from selftaught.store.datafiles import (
    holds_documents,
    read_demonstrations,
    read_documents,
    read_feedback,
    read_pairs,
    read_prompts,
)
from selftaught.store.schema import to_table
from selftaught.store.stage import Store
from selftaught.types import Completion, Demonstration, Document, Feedback, Message, Pair, Prompt


def save(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_prompts_from_text_and_from_messages(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    path = save(
        tmp_path / "a.jsonl",
        {"prompt": "1+1?", "answer": 2, "level": "easy"},
        {"messages": talk, "answer": "4"},
        {"prompt": talk},
        {"prompt": "1+1?", "answer": "2"},
    )
    first, second, third, fourth = read_prompts(path)
    assert first == Prompt.from_text("1+1?", gold="2", meta={"level": "easy"})
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="2+2?"))
    assert second == Prompt(messages=turns, gold="4")
    assert third == Prompt(messages=turns)
    assert (fourth.text, fourth.occurrence) == ("1+1?", 1)
    assert fourth.id != first.id
    assert list(read_prompts(path, limit=2)) == [first, second]
    assert list(read_prompts(path, limit=0)) == []


def test_training_rows(tmp_path: Path) -> None:
    talk = [{"role": "assistant", "content": "good"}]
    pairs = save(
        tmp_path / "pairs.jsonl", {"prompt": "q", "chosen": talk, "rejected": "bad", "weight": 0.5, "src": "x"}
    )
    (pair,) = read_pairs(pairs)
    assert pair.columns() == {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert (pair.weight, pair.prompt.meta) == (0.5, {"src": "x"})
    assert pair.chosen.token_ids is None and pair.chosen.prompt_id == pair.prompt.id
    told = save(tmp_path / "told.jsonl", {"prompt": "q", "completion": "a", "label": False})
    (feedback,) = read_feedback(told)
    assert feedback.columns() == {"prompt": "q", "completion": "a", "label": False}
    shown = save(tmp_path / "shown.jsonl", {"prompt": "q", "completion": "a"})
    (demonstration,) = read_demonstrations(shown)
    assert demonstration.columns() == {"prompt": "q", "completion": "a"}
    for row_type, row in ((Pair, pair), (Feedback, feedback), (Demonstration, demonstration)):
        assert to_table(row_type, [row]).num_rows == 1


def test_equal_texts_have_ids_of_their_own(tmp_path: Path) -> None:
    (pair,) = read_pairs(save(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "a", "rejected": "a"}))
    assert pair.chosen.id != pair.rejected.id


def test_a_stage_is_read_as_it_is(tmp_path: Path) -> None:
    prompt = prompts(1)[0]
    kept = Completion(prompt_id=prompt.id, k=3, text="x", token_ids=(1, 2), model="m")
    pair = Pair(prompt=prompt, chosen=kept, rejected=kept, meta={"votes": [3, 1]})
    with Store(tmp_path).writer("pairs", "0" * 24, Pair) as writer:
        writer.write(0, [pair])
        stage = writer.commit()
    assert list(read_pairs(stage.path)) == [pair]
    with pytest.raises(InputError, match="holds Pair rows; give a stage of Feedback rows"):
        list(read_feedback(stage.path))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q"}, ("line 2", "neither 'prompt' nor 'messages'", "(fields: question)")),
        ({"prompt": 3}, ("line 2", "'prompt' = 3", "text or a list")),
        ({"prompt": []}, ("line 2", "'prompt' is an empty list")),
        ({"messages": ["hi"]}, ("line 2", "messages[0] = 'hi' is no message")),
        ({"messages": [{"role": "user"}]}, ("line 2", "messages[0]", "is no message")),
        ({"messages": [{"role": "human", "content": "x"}]}, ("messages[0] has the role 'human'", "system, user")),
        ({"prompt": "q", "answer": ["a"]}, ("line 2", "'answer' = ['a'] is a list", "text or")),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, row: object, words: tuple[str, ...]) -> None:
    path = save(tmp_path / "a.jsonl", {"prompt": "good"}, row)
    with pytest.raises(InputError) as error:
        list(read_prompts(path))
    assert "\n" not in str(error.value)
    for word in (str(path), *words):
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": "a"}, "line 1: 'rejected' is missing"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "'chosen' is an empty list"),
        (
            {"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"},
            "give one, with role assistant",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": "high"}, "'weight' = 'high' is text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": -0.5}, "'weight' = -0.5 is no share of the loss"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": math.nan}, "is no share of the loss"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(read_pairs(save(tmp_path / "a.jsonl", row)))


def test_steps_of_feedback(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.jsonl",
        {"prompt": "q", "completions": ["a = 1", "b = 2"], "labels": [True, False]},
        {
            "prompt": "q",
            "completion": "x; y; x",
            "label": True,
            "completions": ["x", "y", "x"],
            "labels": [None, False, True],
        },
        {"prompt": "q", "completions": ["a"], "labels": [True]},
        {"prompt": "q", "completions": ["a"], "labels": [None], "label": False},
    )
    first, second, third, fourth = read_feedback(path)
    assert (first.completion.text, first.label) == ("a = 1\nb = 2", False)
    assert first.step_labels == ((0, 5, True), (6, 11, False))
    assert (second.completion.text, second.step_labels) == ("x; y; x", ((3, 4, False), (6, 7, True)))
    assert third.label and not fourth.label and fourth.step_labels == ()
    assert next(read_feedback(path, separator=" ")).completion.text == "a = 1 b = 2"


def test_exported_feedback_comes_back(tmp_path: Path) -> None:
    prompt = Prompt.from_text("q")
    row = Feedback(
        prompt=prompt,
        completion=Completion(prompt_id=prompt.id, k=0, text="ab\n\ncd"),
        label=False,
        step_labels=((0, 4, True), (4, 6, False)),
    )
    (back,) = read_feedback(save(tmp_path / "a.jsonl", row.columns()))
    assert (back.completion.text, back.label, back.step_labels) == (row.completion.text, False, row.step_labels)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "completion": "a"}, "fields prompt, completion; give completion and label, or completions"),
        ({"prompt": "q", "completion": "a", "label": True, "labels": [True]}, "two lists of equal length"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True]}, "two lists of equal length"),
        ({"prompt": "q", "completions": [], "labels": []}, "two lists of equal length"),
        ({"prompt": "q", "completions": ["a"], "labels": [1]}, "step 0 = 'a', 1: give text and true, false or null"),
        ({"prompt": "q", "completions": [""], "labels": [True]}, "step 0 = ''"),
        ({"prompt": "q", "completions": ["a"], "labels": [None]}, "without a label every step must have one"),
        (
            {"prompt": "q", "completion": "b a", "completions": ["a", "b"], "labels": [True, True]},
            "step 1 = 'b' is not in",
        ),
    ],
)
def test_bad_feedback_is_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        list(read_feedback(save(tmp_path / "a.jsonl", row)))
    assert "line 1" in str(error.value)


def test_context_of_completions(tmp_path: Path) -> None:
    (pair,) = read_pairs(
        save(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "t#a", "rejected": "é🎈", "loss_from": [2, 1]})
    )
    assert pair.loss_from == (2, 1) and pair.prompt.meta == {}
    (back,) = read_pairs(save(tmp_path / "b.jsonl", pair.columns()))
    assert back == pair
    shown = save(
        tmp_path / "c.jsonl",
        {"prompt": "q", "completion": "t#a", "loss_from": [3]},
        {"prompt": "q", "completion": "t#a", "loss_from": None},
        {"prompt": "q", "completion": "t#a", "loss_from": [0]},
    )
    assert [row.loss_from for row in read_demonstrations(shown)] == [(3,), (), ()]


@pytest.mark.parametrize("loss_from", [[1], [1, 2, 0], [4, 0], [-1, 0], [True, 0], [1.0, 0], ["1", 0], [None, 0]])
def test_bad_context_is_named(tmp_path: Path, loss_from: list) -> None:
    path = save(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "t#a", "rejected": "b", "loss_from": loss_from})
    with pytest.raises(InputError, match=r"line 1: 'loss_from' = \[.* one number .* at most 3 and 1 here"):
        list(read_pairs(path))
    with pytest.raises(InputError, match="line 1: 'loss_from' = 3 is a whole number; it must be a list"):
        list(read_pairs(save(tmp_path / "b.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b", "loss_from": 3})))


def test_texts_are_documents(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "né", "domain": "d"}\n{"text": "b"}\n', encoding="utf-8")
    assert holds_documents(file)
    assert list(read_documents(file)) == [Document(text="né", meta={"domain": "d"}), Document(text="b")]
    assert len(list(read_documents(file, limit=1))) == 1
    with Store(tmp_path).writer("documents", "0" * 24, Document) as writer:
        writer.write(0, [Document(text="a", patch_lengths=(1, 1))])
        stage = writer.commit()
    assert holds_documents(stage.path)
    assert list(read_documents(stage.path)) == [Document(text="a", patch_lengths=(1, 1))]


def test_demonstrations_are_no_documents(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "text": "c"}\n', encoding="utf-8")
    assert not holds_documents(file)
