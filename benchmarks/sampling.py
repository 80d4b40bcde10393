"""Sampling from a 5.8M Llama: new tokens per second, beside transformers' `generate` and `generate_batch`.

    python benchmarks/sampling.py [--repeats 3] [--out benchmarks/results/sampling.json]

16 prompts of 128 tokens, 8 samples each of 128 new tokens, temperature 1, no filter, no end token, so that all sides
draw the same number. Each measurement is a process of its own; loading and a warm-up on 8 tokens are left out. Ours is
timed from prompts to completions, log-probs and text included. The peers get `num_return_sequences=8`. `generate` is as
it comes; `generate tuned` is the fastest of its attention implementations and caches, `generate_batch` the fastest of
attention implementations and batch sizes.
"""

import json
import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from sides import (
    alternate,
    case,
    command_line,
    matmul_gflops,
    median_of,
    median_rate,
    peak_gigabytes,
    random_llama,
    timed,
)

VOCABULARY, PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS, WARM_UP = 4096, 16, 8, 128, 128, 8
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "generate": ({},),
    "generate tuned": tuple(
        {"attention": attention, "cache": cache} for attention in ("sdpa", "eager") for cache in (None, "static")
    ),
    "generate_batch": (
        {"page_size": 32, "num_blocks": 1600, "max_batch_tokens": 512},
        {"attention": "eager", "page_size": 256, "num_blocks": 200, "max_batch_tokens": 2048},
    ),
}
CASES = tuple(f"{precision} {peer}" for peer in SETTINGS for precision in ("fp32", "bf16"))


def build(precision: str) -> tuple[Any, Any]:
    """Return the random model in eval mode, and its tokenizer, which has no end token."""
    import torch

    specials = {"pad_token": "<pad>", "unk_token": "<unk>"}
    model, tokenizer = random_llama(VOCABULARY, layers=6, width=256, intermediate=688, context=512, specials=specials)
    return model.to(torch.bfloat16 if precision == "bf16" else torch.float32).eval(), tokenizer


def prompt_ids() -> list[list[int]]:
    """Return the prompts."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (PROMPTS, PROMPT_TOKENS), generator=generator).tolist()


def ours(precision: str) -> tuple[float, int]:
    """Sample with this library; return seconds and new tokens."""
    from selftaught.engines.sampler import generate
    from selftaught.specs import Sampling
    from selftaught.types import Prompt

    prompts = [Prompt.from_text(" ".join(f"w{i}" for i in ids)) for ids in prompt_ids()]
    model, tokenizer = build(precision)

    def run(tokens: int) -> int:
        groups = generate(model, tokenizer, prompts, Sampling(k=SAMPLES, max_tokens=tokens), seed=0)
        return sum(len(c.token_ids or ()) for group in groups for c in group)

    run(WARM_UP)
    return timed(lambda: run(NEW_TOKENS))


def transformers_generate(precision: str, attention: str = "sdpa", cache: str | None = None) -> tuple[float, int]:
    """Sample with `generate`; return seconds and new tokens."""
    import torch

    model, _ = build(precision)
    model.set_attn_implementation(attention)
    ids = torch.tensor(prompt_ids())
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": SAMPLES, "cache_implementation": cache}

    def run(tokens: int) -> int:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **options)
        return len(out) * (out.shape[1] - ids.shape[1])

    run(WARM_UP)
    return timed(lambda: run(NEW_TOKENS))


def transformers_generate_batch(precision: str, attention: str = "sdpa", **batching: int) -> tuple[float, int]:
    """Sample with `generate_batch`; return seconds and new tokens."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, _ = build(precision)
    model.set_attn_implementation(attention)

    def run(tokens: int) -> int:
        settings = GenerationConfig(
            do_sample=True,
            top_k=0,
            num_return_sequences=SAMPLES,
            max_new_tokens=tokens,
            eos_token_id=-1,
            pad_token_id=0,
        )
        config = ContinuousBatchingConfig(**batching)
        out = model.generate_batch(prompt_ids(), generation_config=settings, continuous_batching_config=config)
        return sum(len(o.generated_tokens) for o in out.values())

    run(WARM_UP)
    return timed(lambda: run(NEW_TOKENS))


def measure(side: str, case_name: str) -> None:
    """Print one measurement as JSON; `side` is "ours" or the number of a peer's setting."""
    precision, _, peer = case_name.partition(" ")
    if side == "ours":
        seconds, tokens = ours(precision)
    else:
        run = transformers_generate_batch if peer == "generate_batch" else transformers_generate
        seconds, tokens = run(precision, **SETTINGS[peer][int(side)])
    expected = PROMPTS * SAMPLES * NEW_TOKENS
    if tokens != expected:
        raise SystemExit(f"{side} drew {tokens} tokens for {case_name}, not {expected}")
    print(json.dumps({"seconds": seconds, "tokens": tokens, "gigabytes": peak_gigabytes()}))


def report(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tune the peers, measure everything, and return the rows of the result and the matmul peaks."""
    import torch

    peaks = {"fp32": matmul_gflops(torch.float32), "bf16": matmul_gflops(torch.bfloat16)}
    rows = []
    for name in CASES:
        settings = SETTINGS[name.partition(" ")[2]]
        tried = alternate(__file__, (name,), 1, tuple(map(str, range(len(settings)))))
        best = max(range(len(settings)), key=lambda i, n=name, t=tried: median_rate(t[n, str(i)]))
        found = alternate(__file__, (name,), repeats, ("ours", str(best)))
        own, rival = found[name, "ours"], found[name, str(best)]
        facts = {
            "peer_setting": settings[best],
            "peer_settings_tried": [
                {**s, "rate": round(median_rate(tried[name, str(i)]))} for i, s in enumerate(settings)
            ],
            "peak_gigabytes": [median_of(m, "gigabytes") for m in (own, rival)],
        }
        rows.append(case(name, median_rate(own), median_rate(rival), "new tokens/s", **facts))
    return rows, {"matmul_gflops": peaks}


if __name__ == "__main__":
    command_line(__file__, __doc__, 3, measure, report)
