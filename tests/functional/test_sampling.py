import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from selftaught.functional.sampling import FLOOR, draw, draw_each, inverse_cdf, keep, logps_under


def test_inverse_cdf_by_hand() -> None:
    """Weights 1, 0, 2, 1 add up to 4, so u in [0, 1/4) gives 0, [1/4, 3/4) gives 2 and [3/4, 1) gives 3; never 1."""
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0]).expand(6, 4)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(weights, u).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("size", [64, 65, 1000, 4096])
def test_two_levels_give_what_one_sum_gives(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(50, size, generator=generator) * (torch.rand(50, size, generator=generator) < 0.3)
    u = torch.rand(50, generator=generator, dtype=torch.float64)
    cumulative = weights.double().cumsum(-1)
    expected = torch.searchsorted(cumulative, (u * cumulative[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    found = inverse_cdf(weights, u)
    assert torch.equal(found, expected)
    assert (weights.gather(-1, found.unsqueeze(-1)) > 0).all()


def test_the_last_token_is_reached_and_nothing_past_it() -> None:
    weights = torch.zeros(1, 200)
    weights[0, 70] = 1e-30
    assert inverse_cdf(weights, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 70


SETTINGS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_filters_keep_what_transformers_keeps(settings: dict, vocabulary: int) -> None:
    logits = 2 * torch.randn(30, vocabulary, generator=torch.Generator().manual_seed(1))
    warpers = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    scores = logits
    for name, warper in warpers.items():
        if name in settings:
            scores = warper(settings[name])(None, scores)
    filters = {k: v for k, v in settings.items() if k != "temperature"}
    weights = keep((logits / settings.get("temperature", 1.0)).softmax(-1), **filters)
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), scores.softmax(-1), rtol=1e-4, atol=1e-7)


def test_a_nucleus_wider_than_every_guess_is_found() -> None:
    weights = torch.ones(1, 3000) + torch.arange(3000) * 1e-4
    assert int((keep(weights, top_p=0.5) > 0).sum()) in range(1400, 1500)


def test_a_filter_treats_tied_tokens_alike() -> None:
    kept = keep(torch.tensor([[4.0, 2.0, 2.0, 1.0]]), top_p=0.6)
    assert kept.tolist() == [[4.0, 2.0, 2.0, 0.0]]


def test_logprobs_are_of_the_untempered_distribution() -> None:
    """softmax(log 1, log 3) = (1/4, 3/4): the log-prob of token 1 is log 0.75 at any temperature and filter."""
    logits = torch.tensor([[1.0, 3.0]]).log()
    u = torch.tensor([0.999], dtype=torch.float64)
    for settings in ({}, {"temperature": 0}, {"temperature": 0.5}, {"temperature": 2, "top_k": 1}):
        token, logprob = draw(logits, u, **settings)
        assert token.item() == 1
        assert logprob.item() == pytest.approx(torch.tensor(0.75).log().item(), abs=1e-6)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 2.0, 1.0, -1.0])
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    tokens, _ = draw(logits.expand(len(u), 4), u, temperature=0.8)
    shares = torch.bincount(tokens, minlength=4) / len(u)
    torch.testing.assert_close(shares, (logits / 0.8).softmax(-1), atol=1e-4, rtol=0)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 700, generator=generator) * 3
    u = torch.rand(40, dtype=torch.float64, generator=generator)
    tokens, logprobs = draw(logits, u, 0.9, 300, 0.95, 0.01)
    for row in range(0, 40, 7):
        token, logprob = draw(logits[row : row + 1], u[row : row + 1], 0.9, 300, 0.95, 0.01)
        assert token.item() == tokens[row].item()
        assert logprob.item() == logprobs[row].item()


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.6, "min_p": 0.05}], ids=str)
@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_a_temperature_per_row_gives_the_bits_of_one_for_all(filters: dict, vocabulary: int) -> None:
    """Rows at temperatures 0, 0.3, 1, 1.7 and one that float32 rounds to 0, side by side."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40, vocabulary, generator=generator)
    logits[::4, 7] = logits[::4].amax(-1)  # ties
    u = torch.rand(40, generator=generator, dtype=torch.float64)
    temperatures = torch.tensor([0.0, 0.3, 1.0, 1.7, 1e-60], dtype=torch.float64).repeat(8)
    tokens, logprobs = draw_each(logits, u, temperatures, **filters)
    for temperature in temperatures.unique().tolist():
        rows = temperatures == temperature
        expected = draw(logits[rows], u[rows], temperature if temperature > 1e-38 else 0.0, **filters)
        assert torch.equal(tokens[rows], expected[0]) and torch.equal(logprobs[rows], expected[1])


@pytest.mark.parametrize("settings", [*SETTINGS, {}, {"temperature": 0.05}], ids=str)
def test_the_log_probs_of_given_tokens_are_those_they_are_drawn_with(settings: dict) -> None:
    logits = 2 * torch.randn(30, 50, generator=torch.Generator().manual_seed(2))
    filters = {k: v for k, v in settings.items() if k != "temperature"}
    weights = keep((logits / settings.get("temperature", 1.0)).softmax(-1), **filters).double()
    expected = (weights / weights.sum(-1, keepdim=True)).log().clamp(min=FLOOR)
    for token in range(0, 50, 7):
        tokens = torch.full((30,), token)
        found = logps_under(logits, tokens, **settings)
        torch.testing.assert_close(found, expected[:, token].float(), rtol=1e-4, atol=1e-5)


def test_greedy_decoding_gives_its_token_everything_and_the_others_the_floor() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert logps_under(logits, torch.tensor([1, 1]), 0.0).tolist() == [0.0, FLOOR]


@pytest.mark.parametrize("temperature", [1e-50, 1e-320, 1e-37, 1e-30])
def test_the_smallest_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    u = torch.tensor([0.999], dtype=torch.float64)
    tokens, logps = draw(logits, u, temperature)
    each, _ = draw_each(logits, u, torch.tensor([temperature], dtype=torch.float64))
    assert tokens.tolist() == each.tolist() == [2]
    assert logps.tolist() == pytest.approx(logits.log_softmax(-1)[0, 2:3].tolist())
    assert logps_under(logits, tokens, temperature).tolist() == [0.0]
