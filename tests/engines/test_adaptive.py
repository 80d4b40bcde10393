"""Adaptive decoding in the sampler: what a head chooses, what is drawn then, and that rows keep to themselves."""

import math
from dataclasses import asdict

import pytest
import torch
from tests import architectures
from tests.heads import TEXTS, WIDTH, head, sample, temperatures

from selftaught.engines.adaptive import AdaptivePolicy, EntropyTemperaturePolicy
from selftaught.engines.policies import build_policy
from selftaught.engines.policy import Draw
from selftaught.engines.rows import Request
from selftaught.engines.sampler import Sampler
from selftaught.errors import InputError
from selftaught.models.adaptive_decoder import AdaptiveHead, save_head
from selftaught.specs import Adaptive, Choice, EntropyTemperature, Head, ModelSpec, Sampling

SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 0.8, "top_p": 0.7, "min_p": 0.02},
]
FILTERED = (
    Choice(temperature=0.0),
    Choice(temperature=1.2, top_p=0.6),
    Choice(temperature=0.7, top_k=4),
    Choice(temperature=1.0, min_p=0.1),
    Choice(temperature=1.5),
)
LEVELS = ("sequence", "token")


@torch.no_grad()
def hidden_states(text: str, said: tuple[int, ...]) -> torch.Tensor:
    """Return what the output layer reads at each position that a token of `said` was drawn from."""
    prompt = architectures.tokenizer()(text)["input_ids"]
    ids = torch.tensor([[*prompt, *said]])
    return architectures.model("llama").model(ids).last_hidden_state[0, len(prompt) - 1 : -1]


def drawn_alike(outputs: dict, expected: dict) -> bool:
    return all(
        (outputs[key].token_ids, outputs[key].logprobs) == (output.token_ids, output.logprobs)
        for key, output in expected.items()
    )


# --- What is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_one_choice_is_plain_sampling_bit_for_bit(level: str, settings: dict) -> None:
    plain = sample(None, **settings)
    assert drawn_alike(sample(AdaptivePolicy(head(level, (Choice(**settings),)))), plain)
    assert settings["temperature"] == 0 or len({o.token_ids for o in plain.values()}) > len(TEXTS)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("always", range(len(FILTERED)))
def test_a_head_that_always_says_the_same_is_plain_sampling_bit_for_bit(level: str, always: int) -> None:
    """Choice 0 is greedy decoding."""
    found = sample(AdaptivePolicy(head(level, FILTERED, always=always), select="sample"))
    assert drawn_alike(found, sample(None, **asdict(FILTERED[always])))
    assert {c for o in found.values() for c in o.latents["choice"]} == {float(always)}


@pytest.mark.parametrize("choices", [temperatures(0.0, 0.4, 0.9, 1.6), FILTERED], ids=["temperatures", "filters"])
def test_every_row_is_drawn_as_if_its_choice_were_the_settings(choices: tuple[Choice, ...]) -> None:
    """One batch holds greedy rows beside rows at other temperatures and with other filters."""
    found = sample(AdaptivePolicy(head("sequence", choices), select="sample", explore=0.5), k=8)
    chosen = {key: int(output.latents["choice"][0]) for key, output in found.items()}
    assert set(chosen.values()) == set(range(len(choices)))
    for number, choice in enumerate(choices):
        expected = sample(None, k=8, **asdict(choice))
        assert drawn_alike(found, {key: expected[key] for key, k in chosen.items() if k == number})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_request_can_ask_for_its_own_settings(settings: dict) -> None:
    """Some rows of the batch are drawn as the head says, the others as they ask."""
    policy = AdaptivePolicy(head("token"))
    mixed, adaptive = sample(policy, plain=TEXTS[:2], **settings), sample(policy, **settings)
    plain = sample(None, **settings)
    for (text, k), output in mixed.items():
        assert drawn_alike({0: output}, {0: (plain if text in TEXTS[:2] else adaptive)[text, k]})
        assert ("choice" in output.latents) == (text not in TEXTS[:2])


def test_log_probs_are_untempered() -> None:
    for (text, _), output in sample(AdaptivePolicy(head("token", temperatures(0.0, 0.5, 2.0)))).items():
        logits = architectures.model("llama").lm_head(hidden_states(text, output.token_ids))
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(output.token_ids)[:, None]).squeeze(-1)
        assert output.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


# --- What is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_the_choice_is_the_heads_argmax_where_the_paper_reads_it(level: str) -> None:
    made, seen = head(level), set()
    for (text, _), output in sample(AdaptivePolicy(made), texts=tuple("abcdefgh"), k=1).items():
        states = hidden_states(text, output.token_ids)
        expected = made(states if level == "token" else states[:1]).argmax(-1)
        assert output.latents["choice"] == tuple(expected.tolist())
        seen |= set(output.latents["choice"])
    assert len(seen) > 1


def test_a_sampled_choice_follows_the_heads_distribution() -> None:
    made = head("sequence")
    output = sample(AdaptivePolicy(made, select="sample"), texts=TEXTS[:1], k=400, tokens=1)
    counts = torch.bincount(torch.tensor([int(o.latents["choice"][0]) for o in output.values()]), minlength=4)
    expected = made(hidden_states(TEXTS[0], (5,))).exp()[0] * 400
    spread = (expected * (1 - expected / 400)).sqrt().clamp(min=1)
    assert ((counts - expected).abs() < 4 * spread).all() and (counts > 0).sum() > 1


@pytest.mark.parametrize("explore", [0.5, 1.0])
def test_exploration_is_uniform(explore: float) -> None:
    """A head that always says 2: the others come with explore / 4 each."""
    policy = AdaptivePolicy(head("sequence", always=2), select="argmax", explore=explore)
    outputs = sample(policy, texts=TEXTS[:1], k=800, tokens=1)
    shares = torch.bincount(torch.tensor([int(o.latents["choice"][0]) for o in outputs.values()]), minlength=4) / 800
    expected = torch.full((4,), explore / 4)
    expected[2] += 1 - explore
    torch.testing.assert_close(shares, expected, atol=0.06, rtol=0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stable", [True, False])
def test_a_row_does_not_depend_on_the_rows_beside_it(level: str, stable: bool) -> None:
    def made() -> AdaptivePolicy:
        policy = AdaptivePolicy(head(level), select="sample", explore=0.2)
        policy._stable = stable
        return policy

    together = sample(made(), k=4)
    for text in TEXTS[:2]:
        alone = sample(made(), texts=(text,), k=4)
        assert drawn_alike(together, alone)
        assert all(together[key].latents == output.latents for key, output in alone.items())


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_options_of_others_are_refused() -> None:
    sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), policy=AdaptivePolicy(head()), slots=8)
    request = Request(id="r", prompt=(5,), sampling=Sampling(), seeds=(1,), options={"reset_bias": 1.0})
    with pytest.raises(InputError, match="'reset_bias'"):
        sampler.submit(request)


@pytest.mark.parametrize("explore", [-0.1, 1.5, math.nan])
def test_exploration_is_a_probability(explore: float) -> None:
    with pytest.raises(InputError, match="is no probability"):
        AdaptivePolicy(head(), explore=explore)


def test_a_head_of_another_models_size_is_refused() -> None:
    policy = AdaptivePolicy(AdaptiveHead(WIDTH * 2, Head()))
    with pytest.raises(InputError, match=r"reads hidden states of size 64 and the model's have size 32"):
        sample(policy)


def test_a_head_on_disk_decodes_as_its_spec_says(tmp_path) -> None:
    made = head("token")
    save_head(made, tmp_path, ModelSpec(source="somewhere"))
    policy = build_policy(Adaptive(head=str(tmp_path), select="sample", explore=0.3), architectures.tokenizer())
    expected = sample(AdaptivePolicy(made, select="sample", explore=0.3))
    assert sample(policy) == expected


# --- Entropy-based dynamic temperature --------------------------------------------------------------------------------


def entropy_draw(logits: torch.Tensor, **spec: float) -> Draw:
    policy = EntropyTemperaturePolicy(EntropyTemperature(**spec))
    requests = [Request(id=str(i), prompt=(1,), sampling=Sampling(), seeds=(1,)) for i in range(len(logits))]
    state = policy.start(requests, torch.nn.Identity())
    u = torch.linspace(0, 0.999, len(logits), dtype=torch.float64).unsqueeze(1).expand(-1, 2)
    return policy(logits, logits, state, u)


def test_the_temperature_follows_the_entropy() -> None:
    """Two equally likely tokens have entropy log 2: 1.5 * 0.8 ** (0.3 / 0.693147) = 1.5 * 0.907939 = 1.361908. Four
    have log 4: 1.5 * 0.8 ** 0.216404 = 1.5 * 0.952858 = 1.429287."""
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf], [0.0, 0.0, 0.0, 0.0]])
    found = entropy_draw(logits, base=1.5, theta=0.3).latents["temperature"]
    assert found.tolist() == pytest.approx([1.361908, 1.429287], abs=2e-6)


def test_without_entropy_decoding_is_greedy() -> None:
    logits = torch.tensor([[0.0, 300.0, 0.0], [-math.inf, 2.0, -math.inf]])
    found = entropy_draw(logits, theta=0.1)
    assert found.tokens.tolist() == [1, 1]
    assert found.latents["temperature"].tolist() == [0.0, 0.0]
    assert found.logprobs.tolist() == [0.0, 0.0]


def test_theta_0_is_a_fixed_temperature() -> None:
    policy = EntropyTemperaturePolicy(EntropyTemperature(base=0.7, theta=0.0))
    assert drawn_alike(sample(policy), sample(None, temperature=0.7))
    assert drawn_alike(sample(policy, top_p=0.6), sample(None, temperature=0.7, top_p=0.6))
    one = torch.tensor([[0.0, -math.inf]])
    assert entropy_draw(one, base=0.7, theta=0.0).latents["temperature"].item() == pytest.approx(0.7)


def test_a_greedy_request_stays_greedy() -> None:
    policy = build_policy(EntropyTemperature(), architectures.tokenizer())
    assert drawn_alike(sample(policy, temperature=0.0), sample(None, temperature=0.0))


def test_temperatures_are_kept_per_token() -> None:
    for output in sample(EntropyTemperaturePolicy(EntropyTemperature(base=1.2, theta=0.5))).values():
        assert len(output.latents["temperature"]) == len(output.token_ids)
        assert all(0 <= t < 1.2 for t in output.latents["temperature"])


def test_what_is_no_temperature_is_refused() -> None:
    for fields in ({"base": -1.0}, {"theta": -0.1}, {"base": math.nan}):
        with pytest.raises(InputError, match="give numbers of at least 0"):
            EntropyTemperaturePolicy(EntropyTemperature(**fields))
