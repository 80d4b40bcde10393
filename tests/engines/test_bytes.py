"""The sampler over a Byte Latent Transformer, whose rows end their patches at steps of their own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.byte_models import blt, blt_with_transformer

from selftaught.engines.policy import Draw, SoftmaxPolicy
from selftaught.engines.resets import ResetPolicy
from selftaught.engines.rows import Request
from selftaught.engines.sampler import Sampler, default_slots, generate
from selftaught.functional.patches import DELIMITER, EOS
from selftaught.models.blt import BltForCausalLM, ByteTokenizer
from selftaught.models.special_tokens import add_to_tokenizer
from selftaught.specs import Resets, Sampling
from selftaught.types import Prompt

TEXTS = ("the cat", "", "naïve rats: 7", "mat\n\non", "the cat sat on the mat, and ran")
WARM = Sampling(k=3, temperature=1.0, max_tokens=25)
TOKENIZER = ByteTokenizer()


def run(model: BltForCausalLM, sampling: Sampling, texts: tuple[str, ...] = TEXTS, **options: Any) -> dict:
    prompts = [Prompt.from_text(t) for t in texts]
    found = generate(model, TOKENIZER, prompts, sampling, seed=0, slots=16, **options)
    return {prompt.text: completions for prompt, completions in zip(prompts, found, strict=True)}


@torch.no_grad()
def log_probs(model: BltForCausalLM, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("build", [blt, blt_with_transformer])
def test_greedy_is_the_likeliest_byte_of_full_forwards(build: Any) -> None:
    model = build()
    for text, (completion,) in run(model, Sampling(temperature=0.0, max_tokens=30)).items():
        ids, said = TOKENIZER(text)["input_ids"], []
        while len(said) < 30 and EOS not in said:
            said.append(int(log_probs(model, ids + said)[-1].argmax()))
        assert list(completion.token_ids) == said


def test_log_probs_are_those_of_a_full_forward() -> None:
    model = blt()
    for text, completions in run(model, replace(WARM, temperature=0.8)).items():
        for completion in completions:
            ids, said = TOKENIZER(text)["input_ids"], list(completion.token_ids)
            expected = log_probs(model, ids + said)[len(ids) - 1 : -1].gather(1, torch.tensor(said)[:, None])
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", [blt, blt_with_transformer])
def test_rows_do_not_depend_on_order_or_company(build: Any) -> None:
    model = build()

    def drawn(texts: tuple[str, ...], sampling: Sampling = WARM) -> dict:
        found = run(model, sampling, texts)
        return {(t, c.k): (c.token_ids, c.logprobs, c.text) for t, cs in found.items() for c in cs}

    together = drawn(TEXTS)
    assert drawn(TEXTS[::-1]) == together
    assert drawn(TEXTS[1:3]) == {key: x for key, x in together.items() if key[0] in TEXTS[1:3]}
    more = drawn(("a" * 70, *TEXTS), replace(WARM, k=5))
    assert {key: more[key] for key in together} == together


def test_a_prompt_that_fills_the_context() -> None:
    """Of 20 bytes, BOS and 18 letters leave one: two can be drawn, the second is never fed."""
    model = blt(max_position_embeddings=20)
    model.lm_head.weight.data[EOS] = 0
    found = run(model, Sampling(temperature=0.0, max_tokens=9), ("a" * 18,))
    assert [(len(c.token_ids), c.finish) for c in found["a" * 18]] == [(2, "length")]


@pytest.mark.parametrize("keep_cache", [True, False])
@pytest.mark.parametrize("prompt", [[1], [1, *TOKENIZER.encode_bytes(b"the cat sat on")]])
@pytest.mark.parametrize("added", [False, True])
def test_resets(keep_cache: bool, prompt: list[int], added: bool) -> None:
    """Rows go on after [RESET], or begin anew after their prompt; the token may be one that bytes do not have."""
    model, tokenizer, token = blt(), ByteTokenizer(), DELIMITER
    if added:
        token = add_to_tokenizer(tokenizer, "[RESET]")
        model.resize_token_embeddings(261, mean_resizing=False)
        torch.nn.init.normal_(model.lm_head.weight.data[token])
    policy = ResetPolicy(token, Resets(bias=3.0, max_resets=2, keep_cache=keep_cache))
    sampler = Sampler(model, tokenizer, slots=8, policy=policy)
    sampler.submit(Request(id="0", prompt=tuple(prompt), sampling=Sampling(max_tokens=25), seeds=(1, 2, 3, 4)))
    events = []
    while sampler.busy:
        events += sampler.run_step()
    outputs = [e.output for e in events if e.output]
    assert len(outputs) == 4 and sum(bool(o.discarded) for o in outputs) > 1
    for output in outputs:
        context = list(prompt)
        for place, said in enumerate(output.token_ids):
            expected = log_probs(model, context)[-1]
            assert output.logprobs[place] == pytest.approx(float(expected[said]), abs=1e-4)
            context = list(prompt) if said == token and not keep_cache else [*context, said]


class Script(SoftmaxPolicy):
    """Says these bytes, whatever the model says."""

    def __init__(self, said: bytes) -> None:
        self.said, self.place = TOKENIZER.encode_bytes(said), -1

    def __call__(self, logits: torch.Tensor, hidden: torch.Tensor, state: Any, u: torch.Tensor) -> Draw:
        self.place += 1
        return Draw(tokens=torch.tensor([self.said[self.place]]), logprobs=torch.zeros(1))


@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        (b"caf\xc3\xa9", (), "café"),
        (b"caf\xc3", (), "caf"),
        ("ab😀".encode()[:-1], (), "ab"),
        (b"a\xff", (), "a\ufffd"),
        (b"a\xe2\x98z", (), "a\ufffdz"),
        ("né, là".encode(), ("é,",), "n"),
        ("né, là".encode(), ("à",), "né, l"),
        ("né".encode() + b"\xffz", ("\ufffd",), "né"),
    ],
)
def test_text_of_bytes(said: bytes, stop: tuple[str, ...], text: str) -> None:
    sampler = Sampler(blt(), TOKENIZER, slots=8, policy=Script(said + b"..........."))
    sampling = Sampling(max_tokens=len(said) + 2 * bool(stop), stop=stop)
    sampler.submit(Request(id="0", prompt=(1,), sampling=sampling, seeds=(0,)))
    outputs = [e.output for _ in said + b".." if sampler.busy for e in sampler.run_step() if e.output]
    assert [o.text for o in outputs] == [text]


def test_slots_fit_the_memory_that_bytes_and_patches_take() -> None:
    model = blt()
    # Encoder and decoder: 8 times 16 numbers and one state; globally 2 * 2 * 2 * 8; read by bytes: 2 * 2 * 32.
    assert model.cached_per_position == 9 * 16 + 64 + 128
    assert default_slots(model) == 256
    assert default_slots(model, columns=10**12) == 8
