"""What crosses a process: frozen descriptions of models, sampling, objectives and training, built where they are used.

Recipes and configurations are made of these. No torch here, so that `list` and `--help` answer at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """A small Llama with random weights, and the tokenizer to train for it.

    `tokenizer` is "char" (one token per character), "pattern" (one per match of the regular expression `pattern`, per
    character elsewhere) or "bpe" (byte-level, `vocab_size` tokens). Matrices are drawn with standard deviation
    `init_std`.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int | None = None
    intermediate: int | None = None
    context: int = 256
    tied: bool = True
    rope_theta: float = 10000.0
    init_std: float = 0.02
    tokenizer: Literal["char", "pattern", "bpe"] = "char"
    pattern: str = ""
    vocab_size: int = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to draw a token, of those that an adaptive head chooses among. The fields are those of `Sampling`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An adaptive head to be built: a choice for each "sequence" or each "token".

    `width` is that of its two hidden layers, by default the model's, at most 1024.
    """

    level: Literal["sequence", "token"] = "sequence"
    choices: tuple[Choice, ...] = tuple(Choice(temperature=i / 5) for i in range(6))
    width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """Decoding as the head in directory `head` chooses: its most likely choice, or one drawn from its distribution.

    `explore` is the probability with which a choice is drawn uniformly instead.
    """

    head: str
    select: Literal["argmax", "sample"] = "argmax"
    explore: float = 0.0
    kind: Literal["adaptive"] = "adaptive"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyTemperature:
    """A temperature per token from the entropy H (nats) of its distribution: base * 0.8 ** (theta / H).

    Entropy-based dynamic temperature, arXiv 2403.14541.
    """

    base: float = 1.0
    theta: float = 0.1
    kind: Literal["entropy_temperature"] = "entropy_temperature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resets:
    """Decoding in which the special token `token` takes back what was said before it, up to `max_resets` times.

    `bias` is added to its logit. The model goes on reading what was taken back, unless `keep_cache` is off.
    """

    token: str = "[RESET]"
    bias: float = 0.0
    max_resets: int = 1
    keep_cache: bool = True
    kind: Literal["resets"] = "resets"


Decoding = Adaptive | EntropyTemperature | Resets
"""How rows decode where it is not by softmax with the request's own settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A causal language model: a Hub id or a directory that `from_pretrained` opens.

    `adapter` is a LoRA directory applied on top. `template` says how prompts become text: "plain", "chat" (the
    tokenizer's own template) or the path of a Jinja file. `decoding` is how it decodes.
    """

    source: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    adapter: str | None = None
    template: str = "plain"
    decoding: Decoding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn. Temperature 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off."""

    k: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT:
    """Negative log-likelihood of completions; `per_sequence` averages within a completion first, else over tokens."""

    per_sequence: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """DPO ("sigmoid") or IPO on pairs, each pair multiplied by its weight.

    `nll_alpha` scales the length-normalised negative log-likelihood of the chosen completion, inside the weight.
    """

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: float = 0.1
    nll_alpha: float = 0.0
    label_smoothing: float = 0.0
    length_normalize: bool = False
    weight_normalize: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KTO:
    """KTO on completions that are good or bad; the weights of the two kinds are the paper's lambda_D and lambda_U.

    With `length_normalize` log-ratios are per token. With `per_step` every labelled step is a completion of its own,
    and what precedes it belongs to its prompt.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    length_normalize: bool = False
    per_step: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKTO:
    """KTO of whole completions (unless `outcome` is off) plus `gamma` times KTO of their labelled steps.

    Step losses are averaged within a completion ("mean") or summed ("sum"), and then averaged over completions; "batch"
    averages over all steps of a batch. The steps' reference point is the batch's mean step log-ratio ("batch"), the
    completions' point divided by the mean number of steps ("outcome") or 0 ("zero").
    """

    beta: float = 0.1
    step_beta: float = 0.3
    gamma: float = 1.0
    outcome: bool = True
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    step_desirable_weight: float = 1.0
    step_undesirable_weight: float = 1.0
    step_reduction: Literal["mean", "sum", "batch"] = "mean"
    step_reference_point: Literal["batch", "outcome", "zero"] = "batch"
    length_normalize: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BradleyTerry:
    """A reward model on pairs: each pair's -log sigmoid of how far the chosen reward leads, times its weight.

    The mean divides by the number of pairs, with `weight_normalize` by the sum of their weights.
    """

    weight_normalize: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPreference:
    """An adaptive head on pairs of completions that were decoded with recorded choices; the language model is frozen.

    `loss` is one of Latent Preference Optimization's: choices as tokens beside the text ("token"), by themselves
    ("separate"), or summed over ("latent"); "nll" raises the choices of the chosen completions alone. With
    `length_normalize`, sums over tokens are means.
    """

    loss: Literal["token", "separate", "latent", "nll"] = "separate"
    beta: float = 0.1
    length_normalize: bool = True


ObjectiveSpec = SFT | Preference | KTO | StepKTO | BradleyTerry | LatentPreference


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A low-rank adapter, trained in place of the weights."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Settings of one training stage. `batch_size` counts examples per update, over all ranks and micro-batches."""

    lr: float = 5e-6
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.05
    min_lr_ratio: float = 0.0
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch_tokens: int = 8192
    max_length: int | None = None
    clip: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    precision: Precision = "auto"
    tree_rows: bool = True
    activation_checkpointing: bool = False
    compile: bool = False
    lora: Lora | None = None
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    checkpoint_every: int = 200
    snapshots: Literal["last", "epoch"] = "last"
    trackers: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One pass of supervised training on `demonstrations` of a task; `options` replace the task's own for it."""

    demonstrations: int = 8000
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedModel:
    """A model to start from, trained from random weights on a task's demonstrations, phase after phase."""

    scratch: Scratch = field(default_factory=Scratch)
    phases: tuple[Phase, ...] = (Phase(),)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyModel:
    """The model whose next-byte entropies place patches.

    "ngrams" counts n-grams with `context` bytes of context, 0 to 3, and has no other setting. "transformer" is a byte
    transformer of the given sizes that sees `window` bytes, trained as `training` says; None leaves it random.
    """

    kind: Literal["ngrams", "transformer"] = "ngrams"
    context: int = 3
    layers: int = 2
    width: int = 96
    heads: int = 4
    window: int = 128
    training: Training | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteLatent:
    """A Byte Latent Transformer with random weights. The fields are those of `BltConfig`.

    `patch_size` is the wanted mean of bytes per patch, whatever the rule: rules by entropy get the threshold that gives
    it (with "both", beside `patching_rise`). "explicit" takes the patches that are stored with the documents.
    """

    hidden_size: int = 96
    patch_width: int = 2
    num_attention_heads: int = 4
    encoder_layers: int = 1
    decoder_layers: int = 2
    num_hidden_layers: int = 3
    global_attention_heads: int = 4
    window: int = 512
    max_position_embeddings: int = 8192
    encoder_cross_attention: Literal["all", "last", "none"] = "last"
    decoder_cross_attention: Literal["all", "first", "none"] = "all"
    pooled_query: bool = True
    ngram_sizes: tuple[int, ...] = (3, 4, 5)
    ngram_vocab: int = 8192
    ngram_table: Literal["hash", "frequency"] = "hash"
    patching: Literal["entropy", "monotonic", "both", "space", "stride", "byte", "top_k", "explicit"] = "entropy"
    patching_rise: float = 0.0
    patch_size: float = 4.0
    max_patch_length: int | None = None
    entropy_resets_at_newline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Greedy accuracy and, with `k` samples, self-consistency accuracy on `problems` held-out problems.

    `problems` None takes all there are.
    """

    problems: int | None = 500
    k: int = 8
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 256
