"""Adaptive heads for tests, and samples drawn with them."""

from collections.abc import Sequence
from typing import Any

import torch
from tests import architectures

from selftaught.engines.policy import Policy
from selftaught.engines.rows import Output, Request
from selftaught.engines.sampler import Sampler
from selftaught.models.adaptive_decoder import AdaptiveHead
from selftaught.specs import Choice, Head, Sampling
from selftaught.store.seeds import row_seed

WIDTH = 32
TEXTS = ("abc", "the quick brown fox", "12 34 56", "a")


def temperatures(*values: float) -> tuple[Choice, ...]:
    return tuple(Choice(temperature=t) for t in values)


def head(level: str = "sequence", choices: Sequence[Choice] = (), always: int | None = None) -> AdaptiveHead:
    """Return a head with random weights that choose all its choices now and then, or `always` one."""
    spec = Head(level=level, choices=tuple(choices) or temperatures(0.0, 0.5, 1.0, 1.5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AdaptiveHead(WIDTH, spec)
        last = made.layers[-1]
        if always is None:
            torch.nn.init.normal_(last.weight, std=3.0)
        else:
            last.bias.data[always] = 50.0
    return made.eval()


def sample(
    policy: Policy | None,
    texts: Sequence[str] = TEXTS,
    k: int = 3,
    tokens: int = 16,
    plain: Sequence[str] = (),
    **settings: Any,
) -> dict[tuple[str, int], Output]:
    """Return {(text, sample): output} of the tests' Llama; the texts in `plain` ask for their own `settings`."""
    sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=16, policy=policy)
    for text in texts:
        ids = tuple(architectures.tokenizer()(text)["input_ids"])
        seeds = tuple(row_seed(0, text, i) for i in range(k))
        options = {"adaptive": 0.0} if text in plain else {}
        drawn = Sampling(k=k, max_tokens=tokens, **settings)
        sampler.submit(Request(id=text, prompt=ids, sampling=drawn, seeds=seeds, options=options))
    outputs = {}
    while sampler.busy:
        for event in sampler.run_step():
            if event.output is not None:
                outputs[event.request, event.sample] = event.output
    return outputs
