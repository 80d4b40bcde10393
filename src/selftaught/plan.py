"""What a run would cost before it is started: rows, tokens, memory and hours.

Every figure is an upper bound of the work (all completions run to their limit, no prompt is dropped) times stated
assumptions about the hardware. Rules of thumb: 2 FLOPs per parameter and token forward, 6 forward and backward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from selftaught.specs import Evaluation, Scratch, SeedModel, Training
from selftaught.tasks import load_task
from selftaught.tasks.task import TaskSpec

ADAM_BYTES = 16
"""Per trained parameter: fp32 master weight, two moments, gradient."""
PROMPT_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One stage to come. `tokens` are those the model reads or writes; `passes` is 2 forward only, 6 for training."""

    name: str
    rows: int
    tokens: int
    passes: int


def round_plan(
    label: str,
    *,
    problems: int,
    samples: int,
    tokens: int,
    completions: int,
    training: Training,
    dev: int = 0,
    written: int = 0,
    written_tokens: int = 0,
) -> list[Work]:
    """List one round: `samples` of every problem of `tokens` each, training on `completions` of them, choice of epoch.

    `problems` counts the `written` ones, which a model writes first with `written_tokens` each; `dev` problems choose
    the epoch.
    """
    seen = problems * (PROMPT_TOKENS + completions * tokens)
    epochs = int(training.epochs) if dev else 0
    works = [
        Work(name="new problems", rows=written, tokens=written * (5 * PROMPT_TOKENS + written_tokens), passes=2),
        Work(name="samples", rows=problems * samples, tokens=problems * (PROMPT_TOKENS + samples * tokens), passes=2),
        Work(name="reference", rows=problems, tokens=seen if completions > 1 else 0, passes=2),
        Work(name="training", rows=problems, tokens=int(seen * training.epochs), passes=6),
        Work(name="choice of epoch", rows=dev * epochs, tokens=dev * epochs * (PROMPT_TOKENS + tokens), passes=2),
    ]
    return [replace(work, name=f"{label}: {work.name}") for work in works if work.tokens]


def seed_model_plan(seed_model: SeedModel, tokens: int) -> list[Work]:
    """List the training from random weights, demonstrations having up to `tokens` each after their prompts."""
    works = []
    for number, phase in enumerate(seed_model.phases, 1):
        settings = phase.training
        rows = int(
            settings.max_steps * settings.batch_size if settings.max_steps else phase.demonstrations * settings.epochs
        )
        works.append(
            Work(name=f"seed model: phase {number}", rows=rows, tokens=rows * (PROMPT_TOKENS + tokens), passes=6)
        )
    return works


def problem_counts(spec: TaskSpec, problems: int | None, evaluation: Evaluation) -> tuple[int, int]:
    """Return the numbers of training and test problems, reading the data only where the configuration does not say."""
    tested = evaluation.problems
    if problems is None or tested is None:
        task = load_task(spec)
        problems = len(task.train()) if problems is None else problems
        tested = len(task.test()) if tested is None else tested
    return min(problems, problems if spec.limit is None else spec.limit), tested


def evaluation_plan(label: str, problems: int, evaluation: Evaluation) -> Work:
    """Return the work of one evaluation: a greedy completion and `evaluation.k` samples of every problem."""
    samples = 1 + evaluation.k
    tokens = problems * (PROMPT_TOKENS + samples * evaluation.max_tokens)
    return Work(name=f"{label}: evaluation", rows=problems * samples, tokens=tokens, passes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device, with the share of its peak that training and decoding reach: assumptions, not measurements."""

    name: str
    peak_flops: float
    memory_bytes: float
    training_share: float = 0.4
    decoding_share: float = 0.1


H100 = Device(name="H100 80 GB", peak_flops=989e12, memory_bytes=80e9)
CPU = Device(name="two CPU cores", peak_flops=170e9, memory_bytes=8e9)
LLAMA_8B = 8.03e9


def hours(work: Work, parameters: float, device: Device, devices: int) -> float:
    """Return the hours a stage takes on `devices` devices."""
    share = device.training_share if work.passes > 2 else device.decoding_share
    return work.passes * parameters * work.tokens / (device.peak_flops * share * devices) / 3600


def training_bytes(parameters: float, settings: Training, devices: int) -> float:
    """Return the bytes of weights, gradients and optimizer states on each device, activations left out."""
    if settings.lora:
        return 2 * parameters
    sharded = devices if settings.strategy == "fsdp2" else 1
    return (ADAM_BYTES + 2) * parameters / sharded


def scratch_parameters(scratch: Scratch) -> float:
    """Return the parameters of a model trained from scratch, embeddings of `vocab_size` tokens included."""
    inner = scratch.intermediate or 8 * scratch.width // 3
    return scratch.layers * (4 * scratch.width**2 + 3 * scratch.width * inner) + scratch.vocab_size * scratch.width


def format_plan(
    works: Sequence[Work], parameters: float, settings: Training, devices: int, device: Device = H100
) -> str:
    """Return the plan as a table, with what it assumes."""
    costs = [hours(work, parameters, device, devices) for work in works]
    rows = [(w.name, f"{w.rows:,}", f"{w.tokens / 1e6:,.1f}M", f"{h:.2f}") for w, h in zip(works, costs, strict=True)]
    rows.append(("total", "", f"{sum(w.tokens for w in works) / 1e6:,.1f}M", f"{sum(costs):.2f}"))
    lines = [f"{name:<34} {count:>10} {tokens:>10} {time:>8}" for name, count, tokens, time in _HEADER + rows]
    return "\n".join([*lines, "", *_notes(parameters, settings, devices, device)])


_HEADER = [("stage", "rows", "tokens", "hours")]


def _notes(parameters: float, settings: Training, devices: int, device: Device) -> Iterator[str]:
    need = training_bytes(parameters, settings, devices)
    yield f"{parameters / 1e6:,.0f}M parameters on {devices} x {device.name}"
    yield "upper bound: every completion runs to its limit and no prompt is dropped"
    yield (
        f"assumed: {device.training_share:.0%} of {device.peak_flops / 1e12:g} TFLOP/s in training, "
        f"{device.decoding_share:.0%} in generation, {PROMPT_TOKENS} tokens a prompt"
    )
    fits = need < 0.8 * device.memory_bytes
    remedy = "--training.strategy fsdp2 with more --processes, or --training.lora.rank 16"
    verdict = "fits" if fits else f"does not fit: {remedy}"
    yield f"weights and optimizer: {need / 1e9:.2f} GB of {device.memory_bytes / 1e9:.0f} GB per device, {verdict}"
    yield "generation uses our own sampler; an engine on the extra selftaught[vllm] would speed it up"
