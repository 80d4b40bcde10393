"""The head: built, saved and opened, the log-probs of text under its choices, and transformers' own `generate`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import architectures
from tests.heads import TEXTS, WIDTH, head, sample, temperatures
from tests.train import samples

from selftaught.engines.adaptive import AdaptivePolicy
from selftaught.errors import InputError
from selftaught.models.adaptive_decoder import (
    WEIGHTS,
    AdaptiveHead,
    AdaptiveModel,
    adapted,
    build_head,
    choice_logps,
    choose,
    load_head,
    save_head,
)
from selftaught.models.decoding import FILE, open_spec
from selftaught.specs import Adaptive, Choice, Head, ModelSpec

CHOICES = (
    Choice(temperature=0.0),
    Choice(temperature=0.5),
    Choice(temperature=1.5, top_k=4),
    Choice(top_p=0.6),
    Choice(min_p=0.2),
)
LEVELS = ("sequence", "token")


# --- Built, saved, opened ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSpec:
    return samples.save_model(tmp_path_factory.mktemp("model"))


def test_a_new_head_is_uniform_and_drawn_from_the_seed(model, tmp_path) -> None:
    spec = Head(level="token", choices=CHOICES, width=8)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_head(model=model, head=spec, out=tmp_path / name, seed=seed)
    first, again, other = (load_file(tmp_path / name / WEIGHTS) for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])
    assert first["layers.2.weight"].shape == (8, 8)
    made = load_head(tmp_path / "a")
    assert (made.spec, made.hidden_size, made.training) == (spec, WIDTH, False)
    uniform = torch.full((3, 5), 1 / 5).log()
    torch.testing.assert_close(made(torch.randn(3, WIDTH)), uniform)


def test_a_new_head_leaves_the_random_state_alone(model, tmp_path) -> None:
    before = torch.get_rng_state()
    build_head(model=model, head=Head(), out=tmp_path, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mamba"])
def test_any_language_model_can_have_one(family, tmp_path) -> None:
    build_head(model=samples.save_model(tmp_path / "m", family), head=Head(), out=tmp_path / "h", seed=0)
    assert load_head(tmp_path / "h").hidden_size == WIDTH


@pytest.mark.parametrize("level", LEVELS)
def test_a_saved_head_is_the_same_and_names_its_model(level, tmp_path) -> None:
    made = head(level, CHOICES)
    save_head(made, tmp_path, ModelSpec(source="some/model", revision="v1"))
    opened, states = load_head(tmp_path), torch.randn(4, WIDTH)
    assert torch.equal(opened(states), made(states)) and opened.spec == made.spec
    spec = open_spec(str(tmp_path))
    assert (spec.source, spec.revision, spec.decoding) == ("some/model", "v1", Adaptive(head=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {FILE, WEIGHTS}


def test_it_computes_in_float32_whatever_the_model_does() -> None:
    states = torch.randn(4, WIDTH, requires_grad=True)
    made = head()
    assert made(states.bfloat16()).dtype == torch.float32
    made(states).sum().backward()
    assert states.grad is None


def damage(directory, **changes) -> None:
    found = json.loads((directory / FILE).read_text())
    (directory / FILE).write_text(json.dumps({**found, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "resets"}, "holds no adaptive head"),
        ({"level": "paragraph"}, "level"),
        ({"choices": []}, "needs something to choose among"),
        ({"choices": [{"temperature": -1.0}]}, "choice 0 of the head"),
        ({"choices": [{"temprature": 1.0}]}, "temprature"),
        ({"choices": 3}, "choices"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"hidden_size": 48}, "cannot be read as this head's weights"),
    ],
)
def test_damaged_descriptions(changes, message, tmp_path) -> None:
    save_head(head(), tmp_path, ModelSpec(source="x"))
    damage(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_head(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 40])
def test_damaged_weights(content, tmp_path) -> None:
    save_head(head(), tmp_path, ModelSpec(source="x"))
    (tmp_path / WEIGHTS).unlink()
    if content is not None:
        (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as this head's weights"):
        load_head(tmp_path)
    save_file({"other": torch.zeros(2)}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="cannot be read as this head's weights"):
        load_head(tmp_path)


def test_a_directory_without_a_head(model) -> None:
    for directory in (model.source, "nowhere"):
        with pytest.raises(InputError, match="holds no adaptive head"):
            load_head(directory)


@pytest.mark.parametrize(
    "fields", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 1.5}]
)
def test_choices_out_of_range(fields) -> None:
    with pytest.raises(InputError, match="choice 1 of the head is"):
        AdaptiveHead(WIDTH, Head(choices=(Choice(), Choice(**fields))))


# --- Choosing ---------------------------------------------------------------------------------------------------------


def test_choosing_by_hand() -> None:
    """Probabilities 0.2, 0.5, 0.3. With explore 0.4, u below 0.4 is uniform (0.1 / 0.4 * 3 = 0.75, so choice 0; 0.3
    gives 2.25, so 2); 0.75 becomes 0.35 / 0.6 = 0.583, which lies in choice 1's [0.2, 0.7)."""
    logps = torch.tensor([0.2, 0.5, 0.3]).log().expand(5, 3)
    u = torch.tensor([0.1, 0.3, 0.75, 0.95, 0.5], dtype=torch.float64)
    assert choose(logps, "argmax", u).tolist() == [1] * 5
    assert choose(logps, "sample", u).tolist() == [0, 1, 2, 2, 1]
    assert choose(logps, "argmax", u, 0.4).tolist() == [0, 2, 1, 1, 1]
    assert choose(logps, "sample", u, 0.4).tolist() == [0, 2, 1, 2, 0]
    assert choose(logps, "sample", u, 1.0).tolist() == [0, 0, 2, 2, 1]


# --- Log-probs of text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 1000])
def test_text_has_the_log_probs_that_it_is_drawn_with(chunk) -> None:
    """Against the softmax of the logits that `generate` draws from; what they exclude has the floor of -30."""
    network = architectures.model("llama")
    states, targets = torch.randn(10, WIDTH) * 3, torch.arange(10)
    found = choice_logps(states, network.lm_head, targets, CHOICES, chunk=chunk)
    for k in range(len(CHOICES)):
        changed = adapted(network.lm_head(states), torch.full((10,), k), CHOICES)
        expected = changed.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1).clamp(min=-30)
        torch.testing.assert_close(found[:, k], expected, atol=1e-4, rtol=1e-4)
    assert (found == -30).any() and not found.requires_grad


def test_softcapped_logits() -> None:
    layer, states = torch.nn.Linear(WIDTH, 9), torch.randn(5, WIDTH) * 9
    found = choice_logps(states, layer, torch.arange(5), temperatures(0.7), softcap=2.0)
    expected = (2.0 * (layer(states) / 2.0).tanh() / 0.7).log_softmax(-1)[torch.arange(5), torch.arange(5)]
    torch.testing.assert_close(found[:, 0], expected.detach())


# --- transformers' generate -------------------------------------------------------------------------------------------


def padded(texts=TEXTS) -> dict[str, torch.Tensor]:
    tokenizer = architectures.tokenizer()
    return dict(tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left"))


def until_end(row: torch.Tensor) -> tuple[int, ...]:
    ids = row.tolist()
    return tuple(ids[: ids.index(1) + 1] if 1 in ids else ids)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_gives_what_the_sampler_gives(level, use_cache) -> None:
    """Every choice leaves one token to draw from, so that nothing is random: how the head chooses is compared."""
    made = head(level, (Choice(temperature=0.0), Choice(top_k=1), Choice(temperature=0.3, top_p=1e-6)))
    adaptive = AdaptiveModel(architectures.model("llama"), made)
    inputs = padded()
    said = adaptive.generate(**inputs, max_new_tokens=16, use_cache=use_cache)[:, inputs["input_ids"].shape[1] :]
    expected = sample(AdaptivePolicy(made), k=1)
    for row, text in enumerate(TEXTS):
        output = expected[text, 0]
        assert until_end(said[row]) == output.token_ids
        chosen = adaptive.chosen[row].reshape(-1)[: len(output.latents["choice"])]
        assert tuple(map(float, chosen.tolist())) == output.latents["choice"]
    assert adaptive.chosen.shape == ((4, said.shape[1]) if level == "token" else (4,))
    assert len(adaptive.chosen.unique()) > 1


def test_generate_draws_at_the_chosen_temperature() -> None:
    """The first token of many samples comes with the frequencies of softmax(logits / tau)."""
    adaptive = AdaptiveModel(architectures.model("llama"), head("sequence", temperatures(0.0, 3.0), always=1))
    inputs = padded(TEXTS[:1])
    torch.manual_seed(0)
    said = adaptive.generate(**inputs, max_new_tokens=1, num_return_sequences=4000)[:, -1]
    with torch.no_grad():
        expected = (architectures.model("llama")(**inputs).logits[0, -1] / 3.0).softmax(-1)
    found = torch.bincount(said, minlength=len(expected)) / 4000
    assert ((found - expected).abs() <= 4 * (expected / 4000).sqrt() + 1e-3).all()


def test_returned_sequences_choose_for_themselves_and_keep_their_choice() -> None:
    """With the greedy choice a sequence is the model's own greedy one; the others differ."""
    network = architectures.model("llama")
    adaptive = AdaptiveModel(network, head("sequence", temperatures(0.0, 2.0)), select="sample")
    adaptive.head.layers[-1].weight.data.zero_()
    inputs = padded(TEXTS[:2])
    torch.manual_seed(0)
    said = adaptive.generate(**inputs, max_new_tokens=12, num_return_sequences=8)
    greedy = network.generate(**inputs, max_new_tokens=12, do_sample=False).repeat_interleave(8, 0)
    assert adaptive.chosen.shape == (16,) and set(adaptive.chosen.tolist()) == {0, 1}
    same = torch.tensor([until_end(a) == until_end(b) for a, b in zip(said, greedy, strict=True)])
    assert torch.equal(same, adaptive.chosen == 0)


def test_the_model_is_left_as_it_was() -> None:
    network = architectures.model("llama")
    adaptive = AdaptiveModel(network, head())
    adaptive.generate(**padded(), max_new_tokens=2)
    with pytest.raises(ValueError, match="nonsense"):
        adaptive.generate(**padded(), max_new_tokens=2, nonsense=1)
    assert not network.lm_head._forward_pre_hooks


def test_generate_refuses_what_the_head_decides() -> None:
    adaptive = AdaptiveModel(architectures.model("llama"), head())
    for options in ({"num_beams": 2}, {"temperature": 0.7}, {"do_sample": False}, {"assistant_model": object()}):
        with pytest.raises(InputError, match=f"{next(iter(options))}="):
            adaptive.generate(**padded(), **options)


def test_a_head_of_another_models_size_is_refused() -> None:
    with pytest.raises(InputError, match="of size 64 and those of LlamaForCausalLM have size 32"):
        AdaptiveModel(architectures.model("llama"), AdaptiveHead(64, Head()))


def test_a_head_opens_with_its_model(model, tmp_path) -> None:
    save_head(head("token"), tmp_path, model)
    opened = AdaptiveModel.from_pretrained(tmp_path, select="sample")
    assert opened.select == "sample"
    assert opened.generate(**padded(), max_new_tokens=3).shape[1] == padded()["input_ids"].shape[1] + 3
