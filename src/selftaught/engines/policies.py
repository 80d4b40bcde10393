"""Policies from their specs."""

from typing import Any

import torch

from selftaught.engines.policy import Policy, SoftmaxPolicy
from selftaught.specs import Adaptive, Decoding, EntropyTemperature, Resets


def build_policy(decoding: Decoding | None, tokenizer: Any, device: str | torch.device = "cpu") -> Policy:
    """Return the policy that `decoding` describes, on `device`; None is plain sampling.

    Raises:
        InputError: there is no head where it should be, or `tokenizer` lacks a token that the policy needs.
    """
    match decoding:
        case None:
            return SoftmaxPolicy()
        case Adaptive():
            from selftaught.engines.adaptive import AdaptivePolicy

            return AdaptivePolicy.open(decoding, device)
        case EntropyTemperature():
            from selftaught.engines.adaptive import EntropyTemperaturePolicy

            return EntropyTemperaturePolicy(decoding)
        case Resets():
            from selftaught.engines.resets import ResetPolicy

            return ResetPolicy.for_tokenizer(decoding, tokenizer)
    raise TypeError(f"no policy for {type(decoding).__name__}")
