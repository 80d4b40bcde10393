import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny

from selftaught.errors import InputError
from selftaught.evals.exact_marginals import exact_marginals, marginal_rows
from selftaught.models.load import load_model, load_tokenizer
from selftaught.recipes import divpo
from selftaught.specs import ModelSpec, Sampling
from selftaught.tasks import load_task
from selftaught.types import Completion, Group


@pytest.fixture(scope="module")
def world(tmp_path_factory, cache):
    """A seed model of the smoke recipe with samples of its test prompts."""
    config = divpo.smoke()
    task = load_task(config.task)
    with tiny.open_lab(tmp_path_factory.mktemp("exact")) as lab:
        model = lab.seed_model(config.task, config.seed_model)
        groups = list(lab.generate(model, task.test(), Sampling(k=64, max_tokens=12)))
    return model, groups, {key: task.vocabulary(key) for key in task.keys}


def test_marginals_are_distributions_near_the_observed_shares(world):
    model, groups, values = world
    marginals = exact_marginals(model, groups, values)
    task = load_task(divpo.smoke().task)
    records = [r for g in groups for c in g.completions if (r := task.answer(c.text)) and task.verify(g.prompt, c.text)]
    for key, shares in marginals.items():
        assert list(shares) == list(values[key])
        assert sum(shares.values()) == pytest.approx(1.0)
        for value, share in shares.items():
            observed = sum(f'"{key}": "{value.casefold()}"' in record for record in records) / len(records)
            assert observed == pytest.approx(share, abs=6 * math.sqrt(share * (1 - share) / len(records)) + 0.01)


def test_the_first_value_is_read_off_the_prompt(world):
    """Of one prompt and one sample: softmax over the vocabulary's logits at the place of the first value."""
    model, groups, values = world
    task = load_task(divpo.smoke().task)
    group = groups[0]
    one = next(c for c in group.completions if task.verify(group.prompt, c.text) and c.text.startswith('{"first_name'))
    shares = exact_marginals(model, [replace(group, completions=(one,), scores=())], values, temperature=2.0)
    tokenizer, network = load_tokenizer(model), load_model(model)
    ids = tokenizer(group.prompt.text)["input_ids"] + [one.token_ids[0]]
    columns = tokenizer.convert_tokens_to_ids(list(values["first_name"]))
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits[0, -1, columns] / 2.0
    assert list(shares["first_name"].values()) == pytest.approx(torch.softmax(logits, -1).tolist(), abs=1e-5)


def test_without_a_valid_sample_nothing_is_known(world):
    model, groups, values = world
    broken = Completion(prompt_id=groups[0].id, k=0, text="?", token_ids=(1,))
    empty = [Group(prompt=groups[0].prompt, completions=(broken,))]
    assert exact_marginals(model, empty, values) == {key: {} for key in values}
    rows = list(marginal_rows(empty, Counter(), model=model, values=values))
    assert [(row.text, dict(row.meta)) for row in rows] == [(key, {}) for key in values]


def test_values_of_several_tokens_are_refused(world):
    model, groups, values = world
    with pytest.raises(InputError, match=r"value 'Zebra house' of city is .* tokens or unknown"):
        exact_marginals(model, groups, values | {"city": ("Zebra house",)})


def test_the_model_must_be_there(world, tmp_path: Path):
    with pytest.raises(InputError):
        exact_marginals(ModelSpec(source=str(tmp_path / "none")), world[1], world[2])
