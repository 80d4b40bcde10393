"""Rows and saved models for the trainer's tests."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from tests import architectures, byte_models

from selftaught.models.adaptive_decoder import AdaptiveHead, save_head
from selftaught.specs import Adaptive, Choice, Head, LatentPreference, ModelSpec, Preference, Training
from selftaught.train.encoding import Encoded, completions_of, encode
from selftaught.train.loop import TrainJob
from selftaught.types import Completion, Demonstration, Feedback, Pair, Prompt

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 "


def text(draw: random.Random, low: int, high: int) -> str:
    return "".join(draw.choice(LETTERS) for _ in range(draw.randint(low, high)))


def pairs(
    count: int, seed: int = 0, prompt: tuple[int, int] = (2, 14), completion: tuple[int, int] = (0, 12)
) -> list[Pair]:
    """Return pairs of random text with random weights; an empty completion is just an end-of-turn token."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        asked = Prompt.from_text(text(draw, *prompt))
        chosen, rejected = (Completion(prompt_id=asked.id, k=k, text=text(draw, *completion)) for k in range(2))
        made.append(Pair(prompt=asked, chosen=chosen, rejected=rejected, weight=draw.random()))
    return made


def with_context(rows: Sequence[Any], seed: int = 0) -> list[Any]:
    """Return `rows` with random parts of their completions as context, from nothing to the whole text."""
    draw = random.Random(seed)
    lengths = [[len(c.text) for c in completions_of(row)] for row in rows]
    masks = [tuple(draw.randint(0, n) for n in row) for row in lengths]
    return [replace(row, loss_from=mask, id="") for row, mask in zip(rows, masks, strict=True)]


def demonstrations(count: int, seed: int = 0) -> list[Demonstration]:
    """Return the chosen completions of `pairs`."""
    return [Demonstration(prompt=p.prompt, completion=p.chosen, weight=p.weight) for p in pairs(count, seed)]


def encoded(examples: Sequence[Any]) -> list[Encoded]:
    """Return `examples` as ids of the tests' tokenizer."""
    return encode(architectures.tokenizer(), examples, "plain", "")


def save_model(out: Path, family: str = "llama") -> ModelSpec:
    """Save the family's model with the tests' tokenizer."""
    architectures.model(family).save_pretrained(out)
    architectures.tokenizer().save_pretrained(out)
    return ModelSpec(source=str(out))


def byte_model(model: ModelSpec) -> ModelSpec:
    """Return a Byte Latent Transformer that lies in a directory of `model`."""
    path = Path(model.source) / "bytes"
    return ModelSpec(source=str(path)) if path.is_dir() else byte_models.save(byte_models.blt_with_transformer(), path)


def settings(**changes: Any) -> Training:
    """Return settings of a short fp32 training."""
    defaults = {
        "lr": 1e-3,
        "batch_size": 4,
        "epochs": 2,
        "precision": "fp32",
        "warmup_ratio": 0.0,
        "checkpoint_every": 1,
    }
    return Training(**{**defaults, **changes})


def job(model: ModelSpec, out: Path, **changes: Any) -> TrainJob:
    """Return a preference job on 10 pairs, 3 updates an epoch."""
    defaults = {
        "examples": pairs(10),
        "objective": Preference(beta=0.5, nll_alpha=1.0),
        "settings": settings(),
        "seed": 0,
    }
    return TrainJob(model=model, out=out, **{**defaults, **changes})


def metrics(out: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, without the seconds."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def weights(model: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved model or adapter."""
    from safetensors.torch import load_file

    (file,) = model.glob("*.safetensors")
    return load_file(file)


def feedback(count: int, seed: int = 0, steps: bool = True) -> list[Feedback]:
    """Return random completions, some good, in steps of three characters, the last of them unlabelled now and then."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        asked = Prompt.from_text(text(draw, 2, 14))
        answer = Completion(prompt_id=asked.id, k=0, text=text(draw, 1, 12))
        spans = [(i, min(i + 3, len(answer.text))) for i in range(0, len(answer.text), 3)]
        kept = spans[: max(1, len(spans) - draw.randint(0, 1))] if steps else []
        labels = tuple((start, end, draw.random() < 0.6) for start, end in kept)
        weight = draw.random()
        made.append(
            Feedback(prompt=asked, completion=answer, label=draw.random() < 0.5, step_labels=labels, weight=weight)
        )
    return made


HEAD_LOSSES: tuple[tuple[Literal["sequence", "token"], LatentPreference], ...] = (
    ("sequence", LatentPreference(beta=1.0)),
    ("token", LatentPreference(loss="latent", beta=1.0)),
)
HEAD_CHOICES = tuple(Choice(temperature=t) for t in (0.0, 0.6, 1.3))


def with_head(model: ModelSpec, level: Literal["sequence", "token"]) -> ModelSpec:
    """Return `model` decoding by a random head, which lies in its own directory."""
    path = Path(model.source) / f"{level}-head"
    if not path.is_dir():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = AdaptiveHead(32, Head(level=level, choices=HEAD_CHOICES))
            torch.nn.init.normal_(head.layers[-1].weight)
        save_head(head, path, model)
    return replace(model, decoding=Adaptive(head=str(path)))


def chosen_pairs(count: int, level: Literal["sequence", "token"], seed: int = 0) -> list[Pair]:
    """Return `pairs` with random choices: one, or one per character and one for the end-of-turn token."""
    draw = random.Random(seed)

    def decided(completion: Completion) -> Completion:
        places = range(len(completion.text) + 1 if level == "token" else 1)
        return replace(completion, latents={"choice": tuple(float(draw.randrange(3)) for _ in places)}, id="")

    return [replace(p, chosen=decided(p.chosen), rejected=decided(p.rejected), id="") for p in pairs(count, seed)]
