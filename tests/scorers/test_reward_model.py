"""Tests of selftaught.scorers.reward_model."""

import pytest
import torch
from tests import architectures
from transformers import LlamaForSequenceClassification

from selftaught.errors import InputError
from selftaught.models.load import load_tokenizer, tokenizer_fingerprint
from selftaught.scorers.reward_model import RewardModel
from selftaught.specs import ModelSpec
from selftaught.types import Completion, Group, Prompt

TEXTS = ("a", "bcd", "efghijk", "", "lm n")


def saved(out, labels: int = 1, pad: int | None = 0):
    """Save a random classifier with its tokenizer; `pad` None pads with EOS."""
    torch.manual_seed(0)
    config = architectures.model("llama").config
    config.num_labels, config.pad_token_id = labels, pad
    LlamaForSequenceClassification(config).save_pretrained(out)
    tokenizer = architectures.tokenizer()
    tokenizer.pad_token = "<eos>" if pad is None else tokenizer.pad_token
    tokenizer.save_pretrained(out)
    return ModelSpec(source=str(out))


def groups(*texts: str) -> list[Group]:
    prompts = [Prompt.from_text(f"ask {i}") for i in range(2)]
    return [
        Group(prompt=p, completions=tuple(Completion(prompt_id=p.id, k=k, text=t) for k, t in enumerate(texts)))
        for p in prompts
    ]


def one_by_one(model: ModelSpec, given: list[Group], label: int = 0) -> list[float]:
    network = LlamaForSequenceClassification.from_pretrained(model.source).eval()
    tokenizer, found = architectures.tokenizer(), []
    for group in given:
        for completion in group.completions:
            ids = [*tokenizer(group.prompt.text)["input_ids"], *tokenizer(completion.text)["input_ids"], 1]
            hidden = network.model(torch.tensor([ids]))[0][0, -1]
            found.append(network.score(hidden)[label].item())
    return found


@pytest.mark.parametrize("pad", [0, None])
@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_rewards_are_those_of_each_row_alone_at_its_last_token(tmp_path, pad, budget):
    model, given = saved(tmp_path, pad=pad), groups(*TEXTS)
    scores = [s for row in RewardModel(model=model, batch_tokens=budget)(given) for s in row]
    assert [s.completion_id for s in scores] == [c.id for g in given for c in g.completions]
    assert [s.value for s in scores] == pytest.approx(one_by_one(model, given), abs=1e-5)
    assert len({s.value for s in scores}) > len(TEXTS)


def test_one_label_of_several(tmp_path):
    model, given = saved(tmp_path, labels=3), groups("ab")
    scores = [s for row in RewardModel(model=model, label=2)(given) for s in row]
    assert [s.value for s in scores] == pytest.approx(one_by_one(model, given, 2), abs=1e-5)
    for label in (None, 3):
        with pytest.raises(InputError, match="has 3 labels"):
            list(RewardModel(model=model, label=label)(given))


def test_what_cannot_be_scored_says_why(tmp_path):
    model = saved(tmp_path)
    long, short = next(iter(RewardModel(model=model)(groups("a" * architectures.CONTEXT, "a"))))
    assert long.value is None and "do not fit" in long.note
    assert short.value is not None and not short.note
    network = LlamaForSequenceClassification.from_pretrained(tmp_path)
    network.score.weight.data.fill_(torch.nan)
    network.save_pretrained(tmp_path)
    (broken,) = next(iter(RewardModel(model=model)(groups("a"))))
    assert broken.value is None and "not finite" in broken.note


def test_a_language_model_is_no_reward_model(tmp_path):
    architectures.model("llama").save_pretrained(tmp_path)
    architectures.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="sequence classifier"):
        list(RewardModel(model=ModelSpec(source=str(tmp_path)))(groups("a")))


def test_a_row_that_ends_in_the_pad_token_is_read_at_its_end(tmp_path):
    """Sampled ids that were cut off end in any token; here in the one that rows are padded with."""
    model = saved(tmp_path)
    tokenizer = load_tokenizer(model)
    prompt, fingerprint = Prompt.from_text("ask"), tokenizer_fingerprint(tokenizer)
    rows = tuple(
        Completion(prompt_id=prompt.id, k=k, text="b", token_ids=ids, finish="length", tokenizer=fingerprint)
        for k, ids in enumerate([(5, 0), (5, 6, 7, 0, 8)])
    )
    (scores,) = RewardModel(model=model)([Group(prompt=prompt, completions=rows)])
    network, asked = LlamaForSequenceClassification.from_pretrained(model.source).eval(), tokenizer("ask")["input_ids"]
    wanted = [network.score(network.model(torch.tensor([[*asked, *c.token_ids]]))[0][0, -1]).item() for c in rows]
    assert [s.value for s in scores] == pytest.approx(wanted, abs=1e-5)


def test_equal_texts_one_and_none(tmp_path):
    model = saved(tmp_path)
    same, single, empty = RewardModel(model=model)([groups("ab", "ab")[0], groups("ab")[0], groups()[0]])
    assert same[0].value == pytest.approx(same[1].value, abs=1e-5) and single[0].value == pytest.approx(same[0].value)
    assert empty == []
