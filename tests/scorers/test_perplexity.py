import pickle

import pytest
import torch
from tests.train import samples

from selftaught.errors import InputError
from selftaught.models.load import load_model, load_tokenizer
from selftaught.scorers.perplexity import CompletionNLL
from selftaught.specs import ModelSpec
from selftaught.types import Completion, Group, Prompt, Score


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSpec:
    return samples.save_model(tmp_path_factory.mktemp("model"))


def group(text: str, *completions: str, rewards=()) -> Group:
    prompt = Prompt.from_text(text)
    rows = tuple(Completion(prompt_id=prompt.id, k=k, text=c, model=f"m{k}") for k, c in enumerate(completions))
    scores = tuple(Score(completion_id=c.id, scorer="reward", value=r) for c, r in zip(rows, rewards, strict=False))
    return Group(prompt=prompt, completions=rows, scores=scores)


GROUPS = [group("ab c", "hello", "x"), group("q", "a longer answer 123", ""), group("z z z z z", "no")]


def by_hand(model: ModelSpec, prompt: str, completion: str) -> float | None:
    """Return the mean NLL, one row at a time, without padding."""
    network, tokenizer = load_model(model), load_tokenizer(model)
    before = tokenizer(prompt)["input_ids"] if prompt else []
    ids = [*before, *tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    first = max(1, len(before))
    if first >= len(ids):
        return None
    logps = network(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(logps[i - 1, ids[i]].item() for i in range(first, len(ids))) / (len(ids) - first)


@pytest.mark.parametrize("batch_tokens", [2048, 1])
def test_the_mean_over_the_completions_tokens(model, batch_tokens):
    rows = list(CompletionNLL(model=model, batch_tokens=batch_tokens)(GROUPS))
    for one, scores in zip(GROUPS, rows, strict=True):
        for completion, score in zip(one.completions, scores, strict=True):
            assert (score.completion_id, score.scorer) == (completion.id, "nll")
            assert score.value == pytest.approx(by_hand(model, one.prompt.text, completion.text), abs=1e-4)


def test_without_the_prompt(model):
    rows = list(CompletionNLL(model=model, given=False)(GROUPS))
    assert rows[0][0].scorer == "nll_alone"
    for one, scores in zip(GROUPS, rows, strict=True):
        for completion, score in zip(one.completions, scores, strict=True):
            expected = by_hand(model, "", completion.text)
            if expected is None:
                assert (score.value, score.note) == (None, "no token to score")
            else:
                assert score.value == pytest.approx(expected, abs=1e-4)


def test_only_the_best_is_looked_at(model):
    scorer = CompletionNLL(model=model, best_by="reward")
    ((first, second, third),) = scorer([group("q", "aa", "bb", "cc", rewards=(0.5, None, 0.5))])
    assert first.value is not None and third.value is not None
    assert (second.value, second.note) == (None, "not the best completion")
    with pytest.raises(InputError, match="has no score by 'reward': score it first"):
        list(scorer([group("q", "aa")]))
    ((unscored,),) = scorer([group("q", "aa", rewards=(None,))])
    assert unscored.value is None


def test_what_is_longer_than_the_context_is_unscored(model):
    limit = load_model(model).config.max_position_embeddings
    ((short, long),) = CompletionNLL(model=model)([group("q", "a", "a" * limit)])
    assert short.value is not None
    assert (long.value, long.note) == (None, f"longer than {limit} tokens")


def test_a_likelihood_that_is_not_finite_is_unscored(tmp_path):
    broken = samples.save_model(tmp_path)
    network = load_model(broken)
    with torch.no_grad():
        network.get_input_embeddings().weight.fill_(torch.nan)
    network.save_pretrained(tmp_path)
    ((score,),) = CompletionNLL(model=broken)([group("q", "aa")])
    assert (score.value, score.note) == (None, "its likelihood is not finite")


def test_it_crosses_processes(model):
    scorer = CompletionNLL(model=model, best_by="reward")
    assert pickle.loads(pickle.dumps(scorer)) == scorer
