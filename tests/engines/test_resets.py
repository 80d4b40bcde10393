"""[RESET] at decoding: what stands in the end, the bias, the cap, and rows that reset where it is awkward."""

from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import architectures
from torch import Tensor

from selftaught.engines.policies import build_policy
from selftaught.engines.policy import Draw, SoftmaxPolicy
from selftaught.engines.resets import ResetPolicy
from selftaught.engines.rows import Request
from selftaught.engines.sampler import Sampler, generate
from selftaught.errors import InputError
from selftaught.models.scratch import train_tokenizer
from selftaught.models.special_tokens import add_to_tokenizer
from selftaught.specs import Resets, Sampling, Scratch
from selftaught.store.seeds import row_seed
from selftaught.types import Prompt

RESET, END, OTHER = 40, 1, 5
SURE = 1e4
"""A bias that no logit of the tiny models comes near."""


def network():
    return architectures.model("llama")


def request(name: str, prompt: str = "abc", k: int = 1, stream: bool = False, options=None, **sampling) -> Request:
    ids = tuple(architectures.tokenizer()(prompt)["input_ids"])
    settings = Sampling(k=k, **{"max_tokens": 12, **sampling})
    seeds = tuple(row_seed(0, name, i) for i in range(k))
    return Request(id=name, prompt=ids, sampling=settings, seeds=seeds, stream=stream, options=options or {})


def run(policy: ResetPolicy, requests: list[Request], slots: int = 8):
    """Return {(request, sample): output} and the events."""
    sampler = Sampler(network(), architectures.tokenizer(), slots=slots, policy=policy)
    for each in requests:
        sampler.submit(each)
    events = []
    while sampler.busy:
        events += sampler.run_step()
    return {(e.request, e.sample): e.output for e in events if e.kind == "done"}, events


def policy(**fields) -> ResetPolicy:
    return ResetPolicy(RESET, Resets(**fields))


@torch.no_grad()
def logprob(prefix: list[int], token: int) -> float:
    return network()(input_ids=torch.tensor([prefix])).logits[0, -1].log_softmax(-1)[token].item()


# --- scripts: which token every row says when ------------------------------------------------------------------------


@dataclass
class Place:
    script: Tensor
    step: Tensor

    def select(self, rows: Tensor) -> "Place":
        return Place(self.script[rows], self.step[rows])

    def join(self, other: "Place") -> "Place":
        return Place(torch.cat([self.script, other.script]), torch.cat([self.step, other.step]))


class Script(SoftmaxPolicy):
    """Says the tokens of script i in request i; where [RESET] cannot be drawn any more, OTHER in its place."""

    def __init__(self, scripts: list[list[int]]) -> None:
        self.scripts = scripts

    def start(self, requests, embed) -> Place:
        return Place(torch.tensor([int(r.id) for r in requests]), torch.zeros(len(requests), dtype=torch.int64))

    def __call__(self, logits, hidden, state, u) -> Draw:
        said = [self.scripts[i][n] for i, n in zip(state.script.tolist(), state.step.tolist(), strict=True)]
        forbidden = logits[:, RESET] == -torch.inf
        tokens = torch.where(forbidden & (torch.tensor(said) == RESET), OTHER, torch.tensor(said))
        state.step = state.step + 1
        return Draw(tokens=tokens, logprobs=torch.zeros(len(tokens)))


def scripted(scripts: list[list[int]], **fields) -> ResetPolicy:
    made = policy(**fields)
    made._softmax = Script(scripts)
    return made


def standing(script: list[int], cap: int) -> tuple[list[int], int]:
    """Return what a reader sees of a script in the end, END left out, and how many tokens were said."""
    shown: list[int] = []
    for said, token in enumerate(script, 1):
        if token == RESET and cap > 0:
            shown, cap = [], cap - 1
        elif token == END:
            return shown, said
        else:
            shown.append(OTHER if token == RESET else token)
    return shown, len(script)


SCRIPTS = st.lists(st.lists(st.sampled_from([RESET, RESET, END, 7, 8, 9, 10]), min_size=6, max_size=6), min_size=1)


@settings(max_examples=40)
@given(scripts=SCRIPTS, cap=st.integers(0, 3), keep=st.booleans(), max_tokens=st.integers(1, 6))
def test_a_reader_never_sees_what_was_taken_back(scripts, cap, keep, max_tokens):
    made = scripted(scripts, max_resets=cap, keep_cache=keep)
    requests = [request(str(i), stream=True, max_tokens=max_tokens) for i in range(len(scripts))]
    outputs, events = run(made, requests)
    for i, script in enumerate(scripts):
        shown, said = standing(script[:max_tokens], cap)
        output = outputs[str(i), 0]
        assert output.text == architectures.tokenizer().decode(shown)
        assert len(output.token_ids) == said, "tokens that were taken back count"
        assert all(end <= said for _, end in output.discarded)
        screen: list[int] = []
        for event in (e for e in events if e.request == str(i)):
            if event.kind == "token":
                screen.append(event.token)
            elif event.kind == "retract":
                del screen[len(screen) - event.count :]
        assert [t for t in screen if t != END] == shown


def test_a_reset_at_the_first_token():
    outputs, _ = run(scripted([[RESET, 7, END]]), [request("0")])
    assert (outputs["0", 0].text, outputs["0", 0].discarded) == (architectures.tokenizer().decode([7]), ((0, 1),))


def test_a_reset_with_the_last_token_leaves_nothing():
    outputs, _ = run(scripted([[7, 8, RESET]]), [request("0", max_tokens=3)])
    assert (outputs["0", 0].text, outputs["0", 0].finish) == ("", "length")
    assert outputs["0", 0].discarded == ((0, 3),)


@pytest.mark.parametrize("keep_cache", [True, False])
def test_a_reset_at_the_contexts_end(keep_cache):
    """158 of 160 positions hold the prompt: three tokens can be drawn, the third of them is never fed."""
    prompt = "a" * (architectures.CONTEXT - 2)
    script = scripted([[7, RESET, 8, 9], [7, 8, RESET, 9]], keep_cache=keep_cache)
    outputs, _ = run(script, [request("0", prompt), request("1", prompt)])
    assert [outputs[name, 0].text for name in "01"] == [architectures.tokenizer().decode([8]), ""]
    assert {o.finish for o in outputs.values()} == {"length"}


def test_rows_reset_at_steps_of_their_own():
    scripts = [[7] * n + [RESET] + [10 + n, END] for n in range(6)]
    outputs, _ = run(scripted(scripts), [request(str(n)) for n in range(6)], slots=8)
    decode = architectures.tokenizer().decode
    assert [outputs[str(n), 0].text for n in range(6)] == [decode([10 + n]) for n in range(6)]
    assert [outputs[str(n), 0].discarded for n in range(6)] == [((0, n + 1),) for n in range(6)]


def test_stop_strings_do_not_reach_into_what_was_taken_back():
    a, b = architectures.tokenizer()("xy")["input_ids"]
    outputs, _ = run(scripted([[a, RESET, b, a, b, 9]]), [request("0", stop=("xy",))])
    assert (outputs["0", 0].text, outputs["0", 0].finish) == ("y", "stop")


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_cache", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_model_without_bias(keep_cache, temperature):
    made = policy(bias=2.0, max_resets=2, keep_cache=keep_cache)
    requests = [request(str(i), text, k=3, temperature=temperature) for i, text in enumerate(("abc", "the fox"))]
    outputs, _ = run(made, requests)
    assert any(o.discarded for o in outputs.values())
    for (name, _), output in outputs.items():
        prompt = list(requests[int(name)].prompt)
        context = list(prompt)
        for place, token in enumerate(output.token_ids):
            assert output.logprobs[place] == pytest.approx(logprob(context, token), abs=1e-5)
            reset_prob = torch.tensor(logprob(context, RESET)).exp().item()
            assert output.latents["reset_prob"][place] == pytest.approx(reset_prob, abs=1e-5)
            context = list(prompt) if token == RESET and not keep_cache else [*context, token]


def test_the_bias_is_added_before_the_temperature_divides():
    """Logits 0 and 0 with bias 2 at temperature 2: p = sigmoid(2 / 2) = 0.731, not sigmoid(2) = 0.881."""
    made = ResetPolicy(1, Resets(bias=2.0))
    state = made.start([request(str(i), temperature=2.0) for i in range(2)], None)
    u = torch.tensor([[0.26, 0.0], [0.28, 0.0]], dtype=torch.float64)
    assert made(torch.zeros(2, 2), None, state, u).tokens.tolist() == [0, 1]


@pytest.mark.parametrize(("bias", "resets"), [(SURE, True), (-SURE, False)])
def test_the_sign_of_the_bias(bias, resets):
    outputs, _ = run(policy(bias=bias), [request(str(i), k=4, temperature=t) for i, t in enumerate((0.0, 1.0))])
    assert all((o.discarded == ((0, 1),)) if resets else not o.discarded for o in outputs.values())


@pytest.mark.parametrize("cap", [0, 1, 3])
def test_no_more_resets_than_allowed(cap):
    outputs, _ = run(policy(bias=SURE, max_resets=cap), [request("0", temperature=0.0), request("1", k=4)])
    assert {o.token_ids.count(RESET) for o in outputs.values()} == {cap}


def test_without_a_bias_it_draws_what_plain_sampling_draws():
    """With the cache kept nothing that the model reads is changed by a reset, so all tokens are the same."""
    requests = [request(str(i), k=6, max_tokens=40, temperature=t) for i, t in enumerate((0.0, 0.8, 1.5))]
    ours, _ = run(policy(max_resets=40), requests)
    sampler = Sampler(network(), architectures.tokenizer(), slots=8)
    for each in requests:
        sampler.submit(each)
    plain = {}
    while sampler.busy:
        plain |= {(e.request, e.sample): e.output for e in sampler.run_step() if e.output}
    assert {key: o.token_ids for key, o in plain.items()} == {key: o.token_ids for key, o in ours.items()}
    assert any(o.discarded for o in ours.values())


def test_greedy_rows_beside_sampled_ones_are_as_they_are_alone():
    requests = [
        request("greedy", temperature=0.0),
        request("warm", temperature=1.0),
        request("cool", temperature=0.5, top_p=0.9),
        request("eager", temperature=0.0, options={"reset_bias": SURE}),
    ]
    together, _ = run(policy(bias=1.0), requests)
    for each in requests:
        alone, _ = run(policy(bias=1.0), [each])
        assert alone[each.id, 0] == together[each.id, 0]


def test_a_requests_own_bias_and_cap():
    requests = [
        request("eager", options={"reset_bias": SURE}),
        request("never", options={"reset_bias": SURE, "max_resets": 0}),
        request("twice", options={"reset_bias": SURE, "max_resets": 2}),
        request("usual"),
    ]
    outputs, _ = run(policy(bias=-SURE), requests)
    counts = {name: output.token_ids.count(RESET) for (name, _), output in outputs.items()}
    assert counts == {"eager": 1, "never": 0, "twice": 2, "usual": 0}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_resets": -1}, "request x has max_resets=-1: give 0"),
        ({"max_resets": 1.5}, "request x has max_resets=1.5: give 0"),
        ({"max_resets": float("inf")}, "request x has max_resets=inf: give 0"),
        ({"max_resets": float("nan")}, "request x has max_resets=nan: give 0"),
        ({"reset_bias": float("nan")}, "request x has reset_bias=nan: give a number"),
        ({"reset_bias": float("inf")}, "request x has reset_bias=inf: give a number"),
        ({"reset_bias": 1e39}, r"request x has reset_bias=1e\+39: give a number from -10000 to 10000"),
        ({"max_resets": 1e300}, r"request x has max_resets=1e\+300: give 0"),
        ({"bias": 1.0}, "option 'bias': this model's decoding knows max_resets, reset_bias"),
    ],
)
def test_options_that_mean_nothing(options, complaint):
    sampler = Sampler(network(), architectures.tokenizer(), slots=8, policy=policy())
    with pytest.raises(InputError, match=complaint):
        sampler.submit(request("x", options=options))


@pytest.mark.parametrize("fields", [{"bias": float("inf")}, {"max_resets": -1}])
def test_settings_that_mean_nothing(fields):
    with pytest.raises(InputError, match="decoding has "):
        policy(**fields)


@lru_cache
def small_tokenizer(marked: bool):
    tokenizer = train_tokenizer(Scratch(tokenizer="char"), ["abc[RESET]"])
    if marked:
        add_to_tokenizer(tokenizer, "[RESET]")
    return tokenizer


def test_a_vocabulary_without_the_token():
    with pytest.raises(InputError, match=r"the tokenizer lacks \[RESET\]: add it with models.special_tokens.add_token"):
        build_policy(Resets(), small_tokenizer(False))


def test_a_token_that_prompts_could_spell():
    tokenizer = train_tokenizer(Scratch(tokenizer="char"), ["abc[RESET]"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    with pytest.raises(InputError, match=r"does not keep prompts from spelling \[RESET\]"):
        build_policy(Resets(), tokenizer)


def test_the_policy_of_a_spec():
    tokenizer = small_tokenizer(True)
    made = build_policy(Resets(bias=1.5), tokenizer)
    assert isinstance(made, ResetPolicy)
    assert (made.token_id, made.settings) == (tokenizer.convert_tokens_to_ids("[RESET]"), Resets(bias=1.5))


def test_completions_keep_what_was_discarded():
    tokenizer = architectures.tokenizer()
    prompts = [Prompt.from_text("abc"), replace(Prompt.from_text("fox"), id="")]
    drawn = generate(
        network(), tokenizer, prompts, Sampling(k=2, max_tokens=8), seed=0, policy=policy(bias=SURE), progress=False
    )
    completions = [c for group in drawn for c in group]
    assert {c.discarded for c in completions} == {((0, 1),)}
    assert all(len(c.latents["reset_prob"]) == len(c.token_ids) for c in completions)
