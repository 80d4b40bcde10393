"""What an attacked model is given to read, and what it answers.

An attempt is token ids, not text: suffixes are searched among ids, and the first n tokens of a text need not be what
their own text is encoded as. An answer that is forced to begin in some way is a prompt that begins it
(`text.templates.prefilled`).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from selftaught.engines.policies import build_policy
from selftaught.engines.policy import Policy
from selftaught.engines.rows import Request
from selftaught.engines.sampler import Sampler, completion_of, default_slots, run_requests
from selftaught.errors import InputError
from selftaught.models.load import default_device, load_model, load_tokenizer, tokenizer_fingerprint
from selftaught.specs import ModelSpec, Sampling
from selftaught.store.seeds import row_seed
from selftaught.text.templates import encode_prompt, prefilled
from selftaught.text.tokens import decode
from selftaught.types import Group, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """A model as it is deployed: its weights, in eval mode, its template and how it decodes (None: softmax)."""

    network: PreTrainedModel
    tokenizer: Any
    policy: Policy | None = None
    template: str = "plain"


def open_attacked(spec: ModelSpec, device: str | None = None) -> Attacked:
    """Return the model of `spec`, which decodes as `spec.decoding` says, by default on the GPU where there is one."""
    device = device or default_device()
    tokenizer, network = load_tokenizer(spec), load_model(spec, device=device)
    policy = build_policy(spec.decoding, tokenizer, device)
    return Attacked(network=network, tokenizer=tokenizer, policy=policy, template=spec.template)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The ids a model reads for `prompt`, which may differ from what its text would give."""

    prompt: Prompt
    ids: tuple[int, ...]


def ask(model: Attacked, prompt: Prompt) -> Attempt:
    """Return the prompt as it is: no attack, or the worst of k samples."""
    return Attempt(prompt=prompt, ids=tuple(encode_prompt(model.tokenizer, prompt, model.template)))


def force_start(model: Attacked, prompt: Prompt, start: str, tokens: int) -> Attempt:
    """Return the prefill attack: the answer is forced to begin with the first `tokens` tokens of `start`.

    Raises:
        InputError: `start` has fewer tokens.
    """
    forced = model.tokenizer(start, add_special_tokens=False)["input_ids"]
    if not 0 <= tokens <= len(forced):
        raise InputError(f"prompt {prompt.id}: {tokens} tokens are to be forced, of a start that has {len(forced)}")
    begun = prefilled(prompt, decode(model.tokenizer, forced[:tokens]))
    return Attempt(prompt=begun, ids=(*ask(model, prompt).ids, *forced[:tokens]))


def answers(model: Attacked, attempts: Iterable[Attempt], sampling: Sampling, *, seed: int) -> list[Group]:
    """Return `sampling.k` completions for each attempt, drawn as the model is deployed, resets and all.

    A sample depends on `seed`, the prompt's id and its number, so that suffixes of a prompt share their draws.

    Raises:
        InputError: an attempt does not fit into the model's context.
    """
    attempts = list(attempts)
    slots = default_slots(model.network, max((len(a.ids) for a in attempts), default=0) + sampling.max_tokens)
    sampler = Sampler(
        model.network, model.tokenizer, slots=slots, policy=model.policy, template=model.template, share=sampling.k > 1
    )
    requests: deque[Request] = deque()
    for i, attempt in enumerate(attempts):
        seeds = tuple(row_seed(seed, attempt.prompt.id, k) for k in range(sampling.k))
        requests.append(Request(id=str(i), prompt=attempt.ids, sampling=sampling, seeds=seeds))
    fingerprint = tokenizer_fingerprint(model.tokenizer)
    groups = []
    for i, outputs in run_requests(sampler, requests, sampling.k, progress=None):
        prompt = attempts[i].prompt
        rows = (completion_of(prompt, k, output, "", "", fingerprint) for k, output in enumerate(outputs))
        groups.append(Group(prompt=prompt, completions=tuple(rows)))
    return groups
