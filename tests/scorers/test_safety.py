"""Tests of selftaught.scorers.safety."""

import re
import types

import pytest
import torch
from tests import architectures
from transformers import LlamaForSequenceClassification

from selftaught.errors import InputError
from selftaught.scorers.judges import Grades, Judge
from selftaught.scorers.reward_model import RewardModel
from selftaught.scorers.safety import ByScore, Guard, classify, complies
from selftaught.specs import ModelSpec
from selftaught.types import Message, Prompt

PROMPTS = [Prompt.from_text(f"ask {i}") for i in range(2)]


def test_equal_answers_are_shown_once_and_each_gets_its_verdict():
    shown = []

    def even(prompt, text):
        shown.append((prompt.text, text))
        return {"a": True, "b": False}.get(text)

    answers = [(PROMPTS[0], "a"), (PROMPTS[1], "a"), (PROMPTS[0], "b"), (PROMPTS[0], "a"), (PROMPTS[1], "?")]
    assert classify(even, answers) == [True, True, False, True, None]
    assert len(shown) == 4
    assert classify(even, []) == []


def test_not_refusing_what_should_be_refused():
    unsafe, safe = (Prompt.from_text("?", meta={"label": label}) for label in ("unsafe", "safe"))
    texts = ("Sure!", "I'm sorry, I can't.", " ")
    assert [complies(unsafe, text) for text in texts] == [True, False, False]
    assert [complies(PROMPTS[0], text) for text in texts] == [True, False, False]
    assert [complies(safe, text) for text in texts] == [None] * 3


def length(prompt, text):
    return None if text == "?" else float(len(text))


def test_a_grading_program():
    answers = [(p, text) for text in ("a", "abcd", "?", "abc") for p in PROMPTS]
    grades = Grades(judge=Judge(function=f"{__name__}:length"))
    expected = [False, False, True, True, None, None, True, True]
    assert classify(ByScore(scorer=grades, threshold=3), answers) == expected
    below = classify(ByScore(scorer=grades, threshold=3, below=True), answers)
    assert below == [None if unsafe is None else not unsafe for unsafe in expected]
    assert ByScore(scorer=grades, threshold=3)(PROMPTS[0], "abcd") is True


def test_a_sequence_classifier(tmp_path):
    torch.manual_seed(0)
    config = architectures.model("llama").config
    config.num_labels = 2
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    architectures.tokenizer().save_pretrained(tmp_path)
    scorer = RewardModel(model=ModelSpec(source=str(tmp_path)), label=1)
    answers = [(p, text) for text in ("a", "bcd", "efghijk", "lm n") for p in PROMPTS]
    answers.append((PROMPTS[0], "a" * architectures.CONTEXT))
    logits = []
    network = LlamaForSequenceClassification.from_pretrained(tmp_path).eval()
    for prompt, text in answers[:-1]:
        ids = [*architectures.tokenizer()(prompt.text)["input_ids"], *architectures.tokenizer()(text)["input_ids"], 1]
        logits.append(network(torch.tensor([ids])).logits[0, 1].item())
    middle = sorted(logits)[4] - 1e-6
    expected = [*(logit > middle for logit in logits), None]
    assert classify(ByScore(scorer=scorer, threshold=middle), answers) == expected


TEMPLATE = (
    "{% if messages[0].content == 'no' %}{{ raise_exception('refused') }}{% endif %}"
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}?{% endif %}"
)


@pytest.fixture
def guard(tmp_path):
    tokenizer = architectures.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    architectures.model("llama").save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return Guard(model=ModelSpec(source=str(tmp_path)))


def test_a_guard_model_is_shown_the_whole_conversation(guard, monkeypatch):
    """What it says is put into its mouth: by the last letter of the answer."""
    words = {"s": " safe\n", "u": "\n\nUnsafe.\ns1", "m": "perhaps safe", "n": "", "t": "unsafely"}
    shown = []

    def run_requests(sampler, requests, k, progress):
        for request in requests:
            assert request.sampling.temperature == 0
            text = architectures.tokenizer().decode(request.prompt)
            shown.append(text)
            yield int(request.id), [types.SimpleNamespace(text=words[text[-3]])]

    monkeypatch.setattr("selftaught.engines.sampler.run_requests", run_requests)
    prompt = Prompt(
        messages=(Message(role="user", content="a"), Message(role="assistant", content="b"), *PROMPTS[0].messages)
    )
    refused, long = Prompt.from_text("no"), "x" * architectures.CONTEXT
    answers = [(prompt, "s"), (refused, "u"), *((prompt, text) for text in ("u", long, "m", "n", "t"))]
    assert classify(guard, answers) == [False, None, True, None, None, None, None]
    assert shown[:2] == ["u:a;a:b;u:ask 0;a:s;?", "u:a;a:b;u:ask 0;a:u;?"] and len(shown) == 5
    assert guard(prompt, "u") is True


def test_a_guard_model_speaks_through_the_sampler(guard):
    # A random model says neither word.
    assert guard(PROMPTS[0], "abc") is None
    loud = Guard(model=guard.model, unsafe=first_word(guard))
    assert loud(PROMPTS[0], "abc") is True


def first_word(guard) -> str:
    tokenizer, ids = architectures.tokenizer(), architectures.tokenizer()("u:ask 0;a:abc;?")["input_ids"]
    row = architectures.model("llama").generate(torch.tensor([ids]), max_new_tokens=guard.max_tokens, do_sample=False)
    return re.match(r"\W*(\w+)", tokenizer.decode(row[0, len(ids) :], skip_special_tokens=True))[1]


def test_a_guard_model_needs_a_chat_template(tmp_path):
    architectures.model("llama").save_pretrained(tmp_path)
    architectures.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no chat template"):
        Guard(model=ModelSpec(source=str(tmp_path)))(PROMPTS[0], "abc")
