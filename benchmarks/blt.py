"""The Byte Latent Transformer (width 256, 6 global layers): training, generation and patching, in bytes per second.

    python benchmarks/blt.py [--repeats 3] [--out benchmarks/results/blt.json]

Training: updates on 2 rows of 2,048 bytes of the shipped novels (and on 4 of 1,024: the peer's mask costs it more in
longer rows), patches of 4.5 bytes on average, n-gram tables of 6 x 8,192 rows, beside transformers' `BltForCausalLM`
with the same weights at the fastest of its attention implementations (in bf16 also under autocast). Both sides are
given the same patches, and finding them is not timed; both make the same updates with the fused AdamW, in bf16 on
float32 master weights. Ours multiplies float32 matrices as this library's trainer does (`fast_fp32_matmul`), the peer
as it comes; "same matmul" gives it ours.

Generation: the sampler, its caches on, beside loops that compute the whole row for every byte: our own model under
transformers' `generate`, as it comes and with the faster matmul library ("same matmul"), and transformers' model.
Prompts are 64 bytes, no byte ends a row. Growth is the time for 1,024 bytes over that for 512: 2 where it is linear.

Patching: from ids [16, 8192] to patch lengths, entropies from counts of 3 bytes of context, on the novels again and
again with one word in twenty replaced. The bar is 20 MB/s; there is no peer.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from sides import (
    alternate,
    case,
    command_line,
    largest_difference,
    matmul_gflops,
    median_of,
    median_rate,
    peak_gigabytes,
    timed,
)

BYTES, WARM_UP, UPDATES = 4096, 1, 3
PATCH, NGRAM_ROWS = 4.5, 8192
PROMPT, NEW, SHORT = 64, 1024, 512
SETTINGS: dict[str, tuple[str, ...]] = {
    "train fp32": ("sdpa", "eager"),
    "train bf16": ("sdpa", "eager", "sdpa autocast"),
    "train fp32, same matmul": ("sdpa",),
    "train fp32, rows of 1024": ("sdpa", "eager"),
    "train bf16, rows of 1024": ("sdpa", "eager", "sdpa autocast"),
}
PATCHED_ROWS, PATCHED_BYTES, BATCHES = 16, 8192, 32
BAR = 20e6
LOOPS = {
    "own": "model without caches",
    "own, same matmul": "model without caches, same matmul",
    "peer": "weights in transformers, without caches",
}


def novels(size: int) -> bytes:
    """Return the first `size` bytes of the shipped text."""
    from selftaught.tasks.text_corpora import TextCorpus

    return b"".join(d.text.encode() for d in TextCorpus().documents())[:size]


def build() -> Any:
    """Return the random model, which transformers' implementation computes too, with thresholds for random bytes."""
    import torch

    from selftaught.functional.patches import calibrate_threshold
    from selftaught.models.blt import BltConfig, BltForCausalLM, byte_transformer_config
    from selftaught.models.blt.interchange import SWITCHES
    from selftaught.models.blt.patchers import entropies

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "patch_width": 2, "encoder_layers": 1, "decoder_layers": 4}
    config = BltConfig(
        **{**SWITCHES, **sizes, "ngram_vocab": NGRAM_ROWS},
        entropy_config=byte_transformer_config(width=64, layers=1, heads=2, window=128),
    )
    model = BltForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    scores = entropies(model.model.entropy_model, torch.randint(4, 260, (4, 1024)))
    model.config.patching_threshold = calibrate_threshold(scores, PATCH)
    return model


def peer_of(model: Any, setting: str) -> Any:
    """Return transformers' model with the same weights."""
    from selftaught.models.blt.interchange import to_transformers

    theirs = to_transformers(model)
    theirs.set_attn_implementation(setting.split()[0])
    theirs.model.patcher.requires_grad_(False)
    theirs.generation_config.eos_token_id = None
    return theirs


def batches(width: int) -> Iterator[tuple[Any, Any]]:
    """Yield ids [BYTES / width, width] and their patch lengths, which sum to `width`."""
    import torch

    from selftaught.functional.patches import OFFSET, calibrate_threshold, patch_lengths, threshold_starts
    from selftaught.models.blt import count_ngrams

    steps = WARM_UP + UPDATES
    ids = torch.tensor(list(novels(steps * BYTES))).view(steps, -1, width) + OFFSET
    scores = count_ngrams([ids.flatten()], 2).entropies(ids.flatten(0, 1)).view(ids.shape)
    threshold = calibrate_threshold(scores, PATCH)
    for rows, entropy in zip(ids, scores, strict=True):
        starts = threshold_starts(entropy, threshold)[:, :-1]
        yield rows, patch_lengths(starts)


def train(side: str, case_name: str) -> dict[str, Any]:
    """Make the updates; return bytes, seconds and losses."""
    import torch

    from selftaught.models.matmul import fast_fp32_matmul
    from selftaught.train.precision import Weights

    precision, setting = case_name.split()[1].strip(","), "" if side == "ours" else SETTINGS[case_name][int(side)]
    model = build() if side == "ours" else peer_of(build(), setting)
    model.train()
    autocast = "autocast" in setting
    weights = Weights(model, torch.float32 if precision == "fp32" or autocast else torch.bfloat16)
    optimizer = torch.optim.AdamW(weights.masters, lr=1e-4, fused=True)
    fast = side == "ours" or "same matmul" in case_name
    losses = []

    def update(ids: Any, lengths: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = model(input_ids=ids, patch_lengths=lengths, labels=ids, use_cache=False).loss
        loss.backward()
        weights.collect()
        optimizer.step()
        weights.publish()
        weights.clear()
        losses.append(float(loss.detach()))

    data = list(batches(1024 if "rows of 1024" in case_name else 2048))
    with fast_fp32_matmul(torch.device("cpu")) if fast else nullcontext():
        for batch in data[:WARM_UP]:
            update(*batch)
        seconds, _ = timed(lambda: [update(*batch) for batch in data[WARM_UP:]])
    return {"seconds": seconds, "tokens": UPDATES * BYTES, "losses": losses}


def generate(side: str, case_name: str) -> dict[str, Any]:
    """Generate; return bytes, seconds and, of the sampler, the seconds of half as many bytes."""
    import torch

    from selftaught.models.matmul import fast_fp32_matmul

    rows = int(case_name.split()[1])
    run = sampler(rows) if side == "ours" else whole_rows(peer_of(build(), "sdpa") if side == "peer" else build(), rows)
    with fast_fp32_matmul(torch.device("cpu")) if "same matmul" in side else nullcontext():
        run(8)
        short = timed(lambda: run(SHORT))[0] if side == "ours" else None
        seconds, count = timed(lambda: run(NEW))
    if count != rows * NEW:
        raise SystemExit(f"{side} drew {count} bytes for {case_name}, not {rows * NEW}")
    return {"seconds": seconds, "tokens": count, "short": short}


def sampler(rows: int) -> Callable[[int], int]:
    """Return what draws bytes for `rows` prompts with this library's sampler, and says how many."""
    from selftaught.engines.sampler import generate as sample
    from selftaught.models.blt import ByteTokenizer
    from selftaught.specs import Sampling
    from selftaught.types import Prompt

    model, tokenizer = build(), ByteTokenizer(eos_token=None)
    prompts = [Prompt.from_text(text) for text in prompt_texts(rows)]

    def run(size: int) -> int:
        groups = sample(model, tokenizer, prompts, Sampling(k=1, max_tokens=size), seed=0)
        return sum(len(c.token_ids or ()) for group in groups for c in group)

    return run


def whole_rows(model: Any, rows: int) -> Callable[[int], int]:
    """Return the same with transformers' `generate` and no cache."""
    import torch

    from selftaught.models.blt import ByteTokenizer

    ids = torch.tensor([ByteTokenizer().encode(text) for text in prompt_texts(rows)])

    def run(size: int) -> int:
        options = {"max_new_tokens": size, "do_sample": True, "top_k": 0, "use_cache": False, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return len(out) * (out.shape[1] - ids.shape[1])

    return run


def prompt_texts(rows: int) -> list[str]:
    """Return prompts of as many bytes each."""
    text = novels(2**16).decode(errors="ignore").encode("ascii", "replace").decode()
    return [text[i * PROMPT : (i + 1) * PROMPT] for i in range(rows)]


def patching() -> dict[str, Any]:
    """Find the patches of BATCHES batches of text; return bytes and seconds."""
    import torch

    from selftaught.functional.patches import OFFSET, calibrate_threshold, patch_lengths
    from selftaught.models.blt import BltConfig, count_ngrams
    from selftaught.models.blt.patchers import find_starts

    text = novels(2**20)
    model = count_ngrams([torch.tensor(list(text)) + OFFSET], 3)
    draw, words = random.Random(0), text.split(b" ")
    varied, size = [], 0
    while size < BATCHES * PATCHED_ROWS * PATCHED_BYTES:
        varied.append(b" ".join(draw.choice(words) if draw.random() < 0.05 else word for word in words))
        size += len(varied[-1]) + 1
    every = torch.frombuffer(bytearray(b" ".join(varied)), dtype=torch.uint8)
    ids = every[: BATCHES * PATCHED_ROWS * PATCHED_BYTES].view(BATCHES, PATCHED_ROWS, -1).long() + OFFSET
    threshold = calibrate_threshold(model.entropies(ids[0]), PATCH)
    config = BltConfig(patching_threshold=threshold, entropy_config=model.config)
    patch_lengths(find_starts(config, model, ids[0]))
    seconds, _ = timed(lambda: [patch_lengths(find_starts(config, model, rows)) for rows in ids])
    return {"seconds": seconds, "tokens": ids.numel()}


def measure(side: str, case_name: str) -> None:
    """Print one measurement as JSON; `side` is "ours", the number of a peer's setting, or one of `LOOPS`."""
    if case_name.startswith("train"):
        facts = train(side, case_name)
    else:
        facts = generate(side, case_name) if case_name.startswith("generate") else patching()
    print(json.dumps({**facts, "gigabytes": peak_gigabytes()}))


def trained(name: str, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of a training case, the peer at its fastest setting."""
    settings = SETTINGS[name]
    tried = alternate(__file__, (name,), 1, tuple(map(str, range(len(settings)))))
    best = max(range(len(settings)), key=lambda i: median_rate(tried[name, str(i)]))
    found = alternate(__file__, (name,), repeats, ("ours", str(best)))
    own, rival = found[name, "ours"], found[name, str(best)]
    facts = {
        "peer_setting": settings[best],
        "peer_settings_tried": {s: round(median_rate(tried[name, str(i)])) for i, s in enumerate(settings)},
        "largest relative difference of losses": largest_difference(own[0]["losses"], rival[0]["losses"]),
    }
    memory = [median_of(m, "gigabytes") for m in (own, rival)]
    return [
        case(name, median_rate(own), median_rate(rival), "bytes/s", **facts),
        case(f"{name}, peak memory", *memory, "GB", more_is_better=False),
    ]


def generated(repeats: int) -> list[dict[str, Any]]:
    """Return the rows of generation; the loops over whole rows run once, they take a minute each."""
    one, eight = "generate 1 row", "generate 8 rows"
    own = alternate(__file__, (one, eight), repeats, ("ours",))
    loops = alternate(__file__, (one,), 1, tuple(LOOPS))
    rows = [
        case(f"{one}, beside our own {what}", median_rate(own[one, "ours"]), median_rate(loops[one, side]), "bytes/s")
        for side, what in LOOPS.items()
    ]
    for name in (one, eight):
        twice, once = (median_of(own[name, "ours"], fact) for fact in ("seconds", "short"))
        facts = {"seconds": [round(once, 3), round(twice, 3)]}
        growth = f"{name}, time for {NEW} bytes over that for {SHORT}, beside linear growth"
        rows.append(case(growth, twice / once, NEW / SHORT, "times", more_is_better=False, **facts))
    return rows


def report(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure everything and return the rows of the result and the matmul peaks."""
    import torch

    peaks = {"fp32": matmul_gflops(torch.float32), "bf16": matmul_gflops(torch.bfloat16)}
    rows = [row for name in SETTINGS for row in trained(name, repeats)] + generated(repeats)
    patched = alternate(__file__, ("patching",), repeats, ("ours",))["patching", "ours"]
    return [*rows, case("patching, beside the bar", median_rate(patched) / 1e6, BAR / 1e6, "MB/s")], {
        "matmul_gflops": peaks
    }


if __name__ == "__main__":
    command_line(__file__, __doc__, 3, measure, report)
