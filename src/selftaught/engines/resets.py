"""Decoding with a token that takes back what was said: Backtracking's [RESET] (Zhang et al. 2024, arXiv 2409.14586).

When the token is drawn, everything drawn before it is taken back and the answer begins anew. The model goes on reading
prompt + what was taken back + [RESET], as in training (the paper); with the cache dropped it starts again from the
prompt alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from selftaught.engines.policy import Draw, Embed, OptionCheck, SoftmaxPolicy, SoftmaxState
from selftaught.engines.rows import Request
from selftaught.errors import InputError
from selftaught.specs import Resets
from selftaught.text.templates import MODEL_ONLY

EVERYTHING = 2**31 - 1
LARGEST = 1e4
"""Of a bias or a number of resets."""


@dataclass(slots=True)
class ResetState:
    """Per row: its softmax settings, the bias, how many resets are left, and what its prompt ends with."""

    softmax: SoftmaxState
    bias: Tensor
    left: Tensor
    prompt_length: Tensor
    last_prompt_token: Tensor

    def select(self, rows: Tensor) -> "ResetState":
        """Return the state of these rows."""
        return ResetState(self.softmax.select(rows), *(x[rows] for x in self._columns()))

    def join(self, other: "ResetState") -> "ResetState":
        """Return the state of these rows followed by those of `other`."""
        columns = zip(self._columns(), other._columns(), strict=True)
        return ResetState(self.softmax.join(other.softmax), *(torch.cat(pair) for pair in columns))

    def _columns(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)[1:]]


def _of_bias(value: float) -> str | None:
    # In float32 more would be infinite, and a logit of infinity leaves nothing to draw from.
    return (
        None if abs(value) <= LARGEST else f"a number from -{LARGEST:g} to {LARGEST:g}; to forbid resets, max_resets 0"
    )


def _of_resets(value: float) -> str | None:
    fits = 0 <= value <= LARGEST and value == int(value)
    return None if fits else f"0 (never reset) or a whole number up to {LARGEST:g}"


class ResetPolicy:
    """Plain sampling in which the token `token_id` takes back all that was said, as often as `settings` allow.

    The bias is added to the token's logit before the temperature divides, so that at temperature T it moves the
    token's log-odds by bias / T. After the last reset the token cannot be drawn. Log-probs are those without bias; the
    token's own probability at each step, also without bias, is kept as `reset_prob`. Tokens taken back count towards
    `max_tokens`: a row that resets with its last one has an empty answer and finish "length". With the cache dropped a
    row begins anew after its prompt, a start of the answer that the prompt forces included.

    A request's options `reset_bias` and `max_resets` (0: never) replace those of `settings`.
    """

    options: Mapping[str, OptionCheck] = MappingProxyType({"reset_bias": _of_bias, "max_resets": _of_resets})

    def __init__(self, token_id: int, settings: Resets) -> None:
        for name, value, check in (("bias", settings.bias, _of_bias), ("max_resets", settings.max_resets, _of_resets)):
            if wanted := check(value):
                raise InputError(f"decoding has {name}={value}: give {wanted}")
        self.token_id = token_id
        self.settings = settings
        self._softmax = SoftmaxPolicy()

    @classmethod
    def for_tokenizer(cls, settings: Resets, tokenizer: Any) -> "ResetPolicy":
        """Return the policy for a model with this tokenizer.

        Raises:
            InputError: its vocabulary lacks the token, or prompts could spell it.
        """
        token = settings.token
        if token not in tokenizer.get_vocab() or token not in tokenizer.init_kwargs.get(MODEL_ONLY, ()):
            lack = "lacks" if token not in tokenizer.get_vocab() else "does not keep prompts from spelling"
            raise InputError(
                f"the tokenizer {lack} {token}: add it with models.special_tokens.add_token and train the model to "
                "use it, or give another --decoding.token"
            )
        return cls(int(tokenizer.convert_tokens_to_ids(token)), settings)

    def _wanted(self, options: Mapping[str, float]) -> tuple[float, float]:
        """Return the bias and the number of resets of a request."""
        return options.get("reset_bias", self.settings.bias), options.get("max_resets", self.settings.max_resets)

    def start(self, requests: Sequence[Request], embed: Embed) -> ResetState:
        """Return the rows' settings and where their prompts end."""
        wanted = [self._wanted(request.options) for request in requests]
        return ResetState(
            softmax=self._softmax.start(requests, embed),
            bias=torch.tensor([bias for bias, _ in wanted], dtype=torch.float32),
            left=torch.tensor([int(resets) for _, resets in wanted]),
            prompt_length=torch.tensor([len(request.prompt) for request in requests]),
            last_prompt_token=torch.tensor([request.prompt[-1] for request in requests]),
        )

    def __call__(self, logits: Tensor, hidden: Tensor, state: ResetState, u: Tensor) -> Draw:
        """Draw one token per row; where it is the token, take everything back."""
        bias = torch.where(state.left > 0, state.bias, -inf).to(logits.device)
        biased = logits.clone()
        biased[:, self.token_id] += bias
        tokens = self._softmax(biased, hidden, state.softmax, u).tokens
        total = logits.logsumexp(-1)
        logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - total
        reset = tokens == self.token_id
        state.left = state.left - reset.to(state.left)
        drawn = Draw(
            tokens=tokens,
            logprobs=logprobs,
            latents={"reset_prob": (logits[:, self.token_id] - total).exp()},
            retract=torch.where(reset, EVERYTHING, 0),
        )
        return drawn if self.settings.keep_cache else self._from_the_prompt(drawn, reset, state)

    def _from_the_prompt(self, drawn: Draw, reset: Tensor, state: ResetState) -> Draw:
        # The last prompt token is read again: the first token is drawn from its logits, which no state keeps.
        last, length = (x.to(reset.device) for x in (state.last_prompt_token, state.prompt_length))
        return replace(
            drawn, truncate=torch.where(reset, length - 1, -1), next_inputs=torch.where(reset, last, drawn.tokens)
        )
