"""The shapes of the methods' decoding, as toy policies: what docs/design/decoding.md promises them must hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

import pytest
import torch
from tests import architectures
from torch import Tensor

from selftaught.engines.policy import Draw, SoftmaxPolicy
from selftaught.engines.rows import Request
from selftaught.engines.sampler import Sampler
from selftaught.functional.sampling import draw
from selftaught.specs import Sampling
from selftaught.store.seeds import row_seed

TEXTS = ("abc", "the quick brown fox", "12 34 56")
RESET = 40


@dataclass
class Columns:
    """One tensor per field and row: the state of most policies."""

    def select(self, rows: Tensor) -> "Columns":
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def join(self, other: "Columns") -> "Columns":
        return type(self)(**{f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)})


def network():
    return architectures.model("llama")


def sample(policy, texts: Sequence[str] = TEXTS, k: int = 3, stream: bool = False, max_tokens: int = 24):
    """Return {(text, sample): output} and the events."""
    sampler = Sampler(network(), architectures.tokenizer(), slots=8, policy=policy)
    for text in texts:
        ids = tuple(architectures.tokenizer()(text)["input_ids"])
        seeds = tuple(row_seed(0, text, i) for i in range(k))
        settings = Sampling(k=k, max_tokens=max_tokens)
        sampler.submit(Request(id=text, prompt=ids, sampling=settings, seeds=seeds, stream=stream))
    events = []
    while sampler.busy:
        events += sampler.run_step()
    return {(e.request, e.sample): e.output for e in events if e.kind == "done"}, events


def ids_of(text: str) -> Tensor:
    return torch.tensor(architectures.tokenizer()(text)["input_ids"])


@torch.no_grad()
def logprob(prefix: Tensor, token: int) -> float:
    """Return the log-prob of `token` after `prefix`: ids [L] or vectors [L, d]."""
    name = "input_ids" if prefix.dim() == 1 else "inputs_embeds"
    return network()(**{name: prefix[None]}).logits[0, -1].log_softmax(-1)[token].item()


# --- Adaptive Decoding: a head on the hidden state chooses a temperature ---------------------------------------------


@dataclass
class Temperatures(Columns):
    tau: Tensor


class AdaptiveTemperature:
    """Chooses among two temperatures by the sign of one hidden value: per sequence at its first step, or per token."""

    taus = torch.tensor([0.3, 1.5])
    options = MappingProxyType({})

    def __init__(self, per_token: bool) -> None:
        self.per_token = per_token

    def start(self, requests, embed) -> Temperatures:
        return Temperatures(torch.full((len(requests),), torch.nan))

    def __call__(self, logits: Tensor, hidden: Tensor, state: Temperatures, u: Tensor) -> Draw:
        fresh = state.tau.isnan() | self.per_token
        # The second uniform chooses, the first draws the token.
        chosen = self.taus[(u[:, 1] < torch.sigmoid(hidden[:, 0].double())).long()]
        state.tau = torch.where(fresh, chosen, state.tau)
        tokens, _ = draw(logits / state.tau.unsqueeze(-1), u[:, 0])
        logprobs = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return Draw(tokens=tokens, logprobs=logprobs, latents={"tau": torch.where(fresh, state.tau, torch.nan)})


def test_a_temperature_per_sequence_is_kept_once() -> None:
    outputs, _ = sample(AdaptiveTemperature(per_token=False))
    assert all(len(o.latents["tau"]) == 1 for o in outputs.values())
    assert {round(o.latents["tau"][0], 4) for o in outputs.values()} == {0.3, 1.5}


def test_a_temperature_per_token_is_kept_per_token() -> None:
    outputs, _ = sample(AdaptiveTemperature(per_token=True))
    assert all(len(o.latents["tau"]) == len(o.token_ids) for o in outputs.values())
    for (text, _), output in outputs.items():
        prefix = ids_of(text)
        for token, logp in zip(output.token_ids, output.logprobs, strict=True):
            assert logprob(prefix, token) == pytest.approx(logp, abs=1e-5)
            prefix = torch.cat([prefix, torch.tensor([token])])


# --- Backtracking: [RESET] takes back what was said, with the cache kept or dropped -----------------------------------


@dataclass
class Resets(Columns):
    prompt: Tensor
    last: Tensor
    asked: Tensor


class Backtracking:
    """Says RESET as its sixth token, once. Kept: the context stays. Dropped: the row starts again from its prompt."""

    options = MappingProxyType({})

    def __init__(self, keep_cache: bool) -> None:
        self.keep_cache = keep_cache

    def start(self, requests, embed) -> Resets:
        lengths = torch.tensor([len(r.prompt) for r in requests])
        return Resets(lengths, torch.tensor([r.prompt[-1] for r in requests]), torch.zeros_like(lengths))

    def __call__(self, logits: Tensor, hidden: Tensor, state: Resets, u: Tensor) -> Draw:
        tokens, logprobs = draw(logits, u[:, 0])
        tokens = torch.where(tokens == 1, 5, tokens)
        reset = state.asked == 5
        tokens = torch.where(reset, RESET, tokens)
        logprobs = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        state.asked = state.asked + 1
        retract = torch.where(reset, 10**6, 0)
        if self.keep_cache:
            return Draw(tokens=tokens, logprobs=logprobs, retract=retract)
        # The last prompt token is read again, for the logits of the first answer token.
        return Draw(
            tokens=tokens,
            logprobs=logprobs,
            retract=retract,
            truncate=torch.where(reset, state.prompt - 1, -1),
            next_inputs=torch.where(reset, state.last, tokens),
        )


@pytest.mark.parametrize("keep_cache", [True, False])
def test_reset_takes_back_what_was_said(keep_cache: bool) -> None:
    outputs, events = sample(Backtracking(keep_cache), stream=True)
    for (text, index), output in outputs.items():
        assert output.token_ids[5] == RESET and len(output.token_ids) == 24
        assert output.discarded == ((0, 6),)
        shown = [t for t in output.token_ids[6:] if t > 2]
        assert output.text == architectures.tokenizer().decode(shown)
        mine = [e for e in events if (e.request, e.sample) == (text, index)]
        assert [e.kind for e in mine] == ["token"] * 6 + ["retract"] + ["token"] * 18 + ["done"]
        assert mine[6].count == 6
        context = ids_of(text)
        said = torch.tensor(output.token_ids)
        after = torch.cat([context, said[:6]]) if keep_cache else context
        for place in range(6, 24):
            prefix = torch.cat([after, said[6:place]])
            assert logprob(prefix, int(said[place])) == pytest.approx(output.logprobs[place], abs=1e-5)


def test_uniforms_go_on_after_a_reset() -> None:
    """A row that started again from its prompt with the same uniforms would say the same again."""
    outputs, _ = sample(Backtracking(keep_cache=False))
    assert all(o.token_ids[:5] != o.token_ids[6:11] for o in outputs.values())


class DeleteThree:
    """Takes back three tokens at its draws 5 and 8: the second time across the gap that the first one left."""

    options = MappingProxyType({})

    def start(self, requests, embed) -> Resets:
        return Backtracking(True).start(requests, embed)

    def __call__(self, logits: Tensor, hidden: Tensor, state: Resets, u: Tensor) -> Draw:
        state.asked = state.asked + 1
        deleting = (state.asked == 5) | (state.asked == 8)
        tokens = torch.where(deleting, RESET, torch.arange(10, 10 + len(logits)))
        return Draw(tokens=tokens, logprobs=torch.zeros(len(logits)), retract=torch.where(deleting, 4, 0))


def test_tokens_are_taken_back_across_an_earlier_gap() -> None:
    """t0 t1 t2 t3 R: four back leave t0. Then t5 t6 R: four back are R, t6, t5 and t0, and nothing stands."""
    outputs, events = sample(DeleteThree(), stream=True, max_tokens=9)
    for output in outputs.values():
        assert output.discarded == ((0, 8),)
        assert len(output.text) == 1
    assert {e.count for e in events if e.kind == "retract"} == {4}


# --- Coconut: latent thoughts are fed in place of tokens --------------------------------------------------------------


@dataclass
class Thoughts(Columns):
    left: Tensor
    end: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


class Coconut:
    """Feeds the hidden state back n times (n differs by row), then an end-of-thought id, then decodes."""

    end_of_thought = 37
    options = MappingProxyType({})

    def start(self, requests, embed) -> Thoughts:
        self.embed = embed
        left = torch.tensor([len(r.prompt) % 3 for r in requests])
        return Thoughts(left, torch.ones(len(requests), dtype=torch.bool))

    def __call__(self, logits: Tensor, hidden: Tensor, state: Thoughts, u: Tensor) -> Draw:
        tokens, logprobs = draw(logits, u[:, 0])
        thinking, ending = state.left > 0, (state.left == 0) & state.end
        silent = thinking | ending
        fed = self.embed(torch.where(ending, self.end_of_thought, tokens))
        state.left = state.left - thinking.long()
        state.end = state.end & ~ending
        return Draw(
            tokens=torch.where(silent, -1, tokens),
            logprobs=logprobs,
            next_inputs=torch.where(thinking.unsqueeze(-1), hidden, fed),
        )


def test_thoughts_are_fed_and_leave_no_tokens() -> None:
    outputs, _ = sample(Coconut())
    embed = network().get_input_embeddings()
    for (text, _), output in outputs.items():
        with torch.no_grad():
            prefix = embed(ids_of(text))
            for _ in range(len(ids_of(text)) % 3):
                hidden = network().model(inputs_embeds=prefix[None]).last_hidden_state[0, -1:]
                prefix = torch.cat([prefix, hidden])
            prefix = torch.cat([prefix, embed(torch.tensor([Coconut.end_of_thought]))])
            for token, logp in zip(output.token_ids, output.logprobs, strict=True):
                assert logprob(prefix, token) == pytest.approx(logp, abs=1e-5)
                prefix = torch.cat([prefix, embed(torch.tensor([token]))])


def test_a_policy_that_draws_nothing_must_feed_something() -> None:
    class Silent(SoftmaxPolicy):
        def __call__(self, logits, hidden, state, u):
            return Draw(tokens=torch.full((len(logits),), -1), logprobs=torch.zeros(len(logits)))

    with pytest.raises(ValueError, match="Silent drew no token for a row: give next_inputs"):
        sample(Silent())


def test_thoughts_without_end_stop_at_the_context() -> None:
    class Dreaming(SoftmaxPolicy):
        def __call__(self, logits, hidden, state, u):
            return Draw(tokens=torch.full((len(logits),), -1), logprobs=torch.zeros(len(logits)), next_inputs=hidden)

    outputs, _ = sample(Dreaming(), texts=["abc"], k=1)
    assert [(o.token_ids, o.finish) for o in outputs.values()] == [((), "length")]


# --- Ends -------------------------------------------------------------------------------------------------------------


def test_a_policy_can_end_a_row() -> None:
    class Short(SoftmaxPolicy):
        def __call__(self, logits, hidden, state, u):
            return replace(
                super().__call__(logits, hidden, state, u), finished=torch.ones(len(logits), dtype=torch.bool)
            )

    outputs, _ = sample(Short())
    assert {(len(o.token_ids), o.finish) for o in outputs.values()} == {(1, "stop")}
