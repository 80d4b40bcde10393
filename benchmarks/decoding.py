"""What decoding policies and serving cost, on the 5.8M Llama of `sampling`, in fp32.

    python benchmarks/decoding.py [--repeats 5] [--out benchmarks/results/decoding.json]

Policies: 16 prompts of 128 tokens, 8 samples each of 128 new tokens, beside plain sampling of the same batch at
temperature 0.8. The adaptive heads are random, with six temperatures from 0 to 1, so that rows and steps differ in
their choice; [RESET] is a token that is hardly ever drawn. Serving: `selftaught serve` in a process of its own answers
32 requests of 128 tokens for 64 new ones each, all at once beside one after the other.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from sampling import NEW_TOKENS, PROMPTS, SAMPLES, WARM_UP, build, prompt_ids
from sides import alternate, case, command_line, median_rate, peak_gigabytes, timed

POLICIES = ("sequence head", "token head", "[RESET]")
REQUESTS, SERVED_TOKENS = 32, 64
SERVING = "served, 32 at once beside one at a time"
TEMPERATURE = 0.8


def policy(name: str, width: int) -> Any:
    """Return the policy that is measured, for a model of this width."""
    import torch

    from selftaught.engines.adaptive import AdaptivePolicy
    from selftaught.engines.policy import SoftmaxPolicy
    from selftaught.engines.resets import ResetPolicy
    from selftaught.models.adaptive_decoder import AdaptiveHead
    from selftaught.specs import Head, Resets

    if name == "plain":
        return SoftmaxPolicy()
    if name == "[RESET]":
        return ResetPolicy(7, Resets(bias=-5.0))
    torch.manual_seed(1)
    head = AdaptiveHead(width, Head(level="token" if name == "token head" else "sequence"))
    torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    return AdaptivePolicy(head.eval(), select="sample")


def sampled(name: str) -> tuple[float, int]:
    """Sample under a policy; return seconds and new tokens."""
    from selftaught.engines.sampler import generate
    from selftaught.specs import Sampling
    from selftaught.types import Prompt

    prompts = [Prompt.from_text(" ".join(f"w{i}" for i in ids)) for ids in prompt_ids()]
    model, tokenizer = build("fp32")
    decoding = policy(name, model.config.hidden_size)

    def run(tokens: int) -> int:
        settings = Sampling(k=SAMPLES, max_tokens=tokens, temperature=TEMPERATURE)
        groups = generate(model, tokenizer, prompts, settings, seed=0, policy=decoding)
        return sum(len(c.token_ids or ()) for group in groups for c in group)

    run(WARM_UP)
    return timed(lambda: run(NEW_TOKENS))


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """Serve the model in a process of its own; yield its name and the address of its API."""
    with tempfile.TemporaryDirectory() as directory:
        for part in build("fp32"):
            part.save_pretrained(directory)
        command = [sys.executable, "-m", "selftaught", "serve", directory, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            # "serving NAME at ADDRESS", once it listens.
            _, name, _, address = process.stdout.readline().split()
            try:
                yield name, address
            finally:
                process.terminate()


def served(at_once: int) -> tuple[float, int]:
    """Send the requests, `at_once` at a time; return seconds and the new tokens that came back."""
    import asyncio

    from openai import AsyncOpenAI

    prompts = [" ".join(f"w{i}" for i in ids) for ids in prompt_ids()]

    async def run(name: str, address: str, tokens: int) -> int:
        limit = asyncio.Semaphore(at_once)

        async def ask(client: AsyncOpenAI, i: int) -> int:
            async with limit:
                answer = await client.completions.create(
                    model=name, prompt=prompts[i % PROMPTS], max_tokens=tokens, temperature=TEMPERATURE, seed=i
                )
            return answer.usage.completion_tokens

        async with AsyncOpenAI(base_url=address, api_key="none") as client:
            return sum(await asyncio.gather(*(ask(client, i) for i in range(REQUESTS))))

    with server() as (name, address):
        asyncio.run(run(name, address, WARM_UP))
        return timed(lambda: asyncio.run(run(name, address, SERVED_TOKENS)))


def measure(side: str, case_name: str) -> None:
    """Print one measurement as JSON; `side` is "ours" or "peer"."""
    if case_name == SERVING:
        seconds, tokens = served(REQUESTS if side == "ours" else 1)
        expected = REQUESTS * SERVED_TOKENS
    else:
        seconds, tokens = sampled(case_name if side == "ours" else "plain")
        expected = PROMPTS * SAMPLES * NEW_TOKENS
    if tokens != expected:
        raise SystemExit(f"{side} drew {tokens} tokens for {case_name}, not {expected}")
    print(json.dumps({"seconds": seconds, "tokens": tokens, "gigabytes": peak_gigabytes()}))


def report(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure everything, and return the rows of the result."""
    rows = []
    for name in (*POLICIES, SERVING):
        found = alternate(__file__, (name,), repeats, ("ours", "peer"))
        ours, peer = (median_rate(found[name, side]) for side in ("ours", "peer"))
        rows.append(case(name, ours, peer, "new tokens/s"))
    return rows, {}


if __name__ == "__main__":
    command_line(__file__, __doc__, 5, measure, report)
