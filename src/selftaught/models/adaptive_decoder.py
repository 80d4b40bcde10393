"""A head that chooses how the next token is drawn (its temperature, say), on a language model that stays as it is.

Adaptive Decoding, arXiv 2411.09661. The head reads the vector that the model's output layer reads. It is saved as a
directory of its own: `decoding.json`, which names the model it belongs to, and `head.safetensors`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from selftaught.config import from_dict
from selftaught.errors import InputError
from selftaught.functional.logps import CHUNK
from selftaught.functional.sampling import inverse_cdf, keep, logps_under
from selftaught.models.decoding import BASE_FIELDS, FILE, open_spec, read_decoding
from selftaught.models.load import load_config, load_model
from selftaught.specs import Choice, Head, ModelSpec
from selftaught.store.files import write_json

WEIGHTS = "head.safetensors"
WIDEST = 1024
_GENERATE = {"do_sample": True, "num_beams": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class AdaptiveHead(nn.Module):
    """Three linear layers with SiLU between them, d -> width -> width -> K, in float32, uniform before it is trained.

    Args:
        hidden_size: d, of what the model's output layer reads.
        spec: the level, the K choices and the width.

    Raises:
        InputError: there is no choice, or a value of one is out of range.
    """

    def __init__(self, hidden_size: int, spec: Head) -> None:
        super().__init__()
        _check_choices(spec.choices)
        self.hidden_size, self.spec = hidden_size, spec
        width = spec.width or min(hidden_size, WIDEST)
        last = nn.Linear(width, len(spec.choices))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(hidden_size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What it chooses among."""
        return self.spec.choices

    @property
    def per_token(self) -> bool:
        """Whether every token has a choice of its own; else every completion has one."""
        return self.spec.level == "token"

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities of the choices, [..., K] float32, for hidden states [..., d].

        Raises:
            InputError: d is not that of the head.
        """
        if hidden.shape[-1] != self.hidden_size:
            raise InputError(
                f"the head reads hidden states of size {self.hidden_size} and the model's have size "
                f"{hidden.shape[-1]}: use the model it was made for"
            )
        return self.layers(hidden.detach().float()).log_softmax(-1)


def build_head(*, model: ModelSpec, head: Head, out: Path, seed: int) -> None:
    """Fill `out` with an untrained head for `model`, its hidden layers drawn from `seed`.

    Raises:
        InputError: the model has no output layer, or the head's choices cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AdaptiveHead(_hidden_size(model), head)
    save_head(made, out, model)


def save_head(head: AdaptiveHead, out: Path, base: ModelSpec) -> None:
    """Write `head` to the directory `out`, with the name of the model it belongs to."""
    out.mkdir(parents=True, exist_ok=True)
    base_fields = {"base_model": base.source, **{name: getattr(base, name) for name in BASE_FIELDS}}
    sizes = {"kind": "adaptive", "hidden_size": head.hidden_size}
    write_json(out / FILE, sizes | asdict(head.spec) | base_fields)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(weights, out / WEIGHTS)


def load_head(directory: str | Path, device: str | torch.device = "cpu") -> AdaptiveHead:
    """Return the head saved in `directory`, in eval mode.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    path = Path(directory).expanduser()
    found = read_decoding(path)
    if found is None or found.get("kind") != "adaptive":
        raise InputError(f"{directory} holds no adaptive head: pass a directory with its {FILE} and {WEIGHTS}")
    spec = from_dict(Head, {name: found[name] for name in ("level", "choices", "width") if name in found})
    size = found.get("hidden_size")
    if not isinstance(size, int):
        raise InputError(f"{path / FILE}: hidden_size = {size!r}: write the size that the head's first layer reads")
    head = AdaptiveHead(size, spec)
    try:
        head.load_state_dict(load_file(path / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path / WEIGHTS} cannot be read as this head's weights: {reason}; build it again") from None
    return head.to(device).eval()


def choose(logps: Tensor, select: Literal["argmax", "sample"], u: Tensor, explore: float = 0.0) -> Tensor:
    """Return the index [n] of a choice per row of log-probabilities [n, K].

    `u` [n] float64 in [0, 1) decides it: below `explore` the choice is uniform, above it that of `select`.
    """
    if select == "argmax":
        chosen = logps.argmax(-1)
    else:
        chosen = inverse_cdf(logps.exp(), ((u - explore) / (1 - explore)).clamp(min=0) if explore else u)
    if not explore:
        return chosen
    uniform = (u / explore * logps.shape[-1]).long().clamp(max=logps.shape[-1] - 1)
    return torch.where(u < explore, uniform, chosen)


@torch.no_grad()
def choice_logps(
    hidden: Tensor,
    output: nn.Module,
    targets: Tensor,
    choices: Sequence[Choice],
    *,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Return the log-probability of every target under every choice, [M, K] float32 nats, at least -30 each.

    Logits are made for `chunk` positions at a time, so that memory is chunk x V and not M x K x V.

    Args:
        hidden: [M, d], what `output`, the model's output layer, reads.
        targets: [M] int64.
        softcap: the model's logits are softcap * tanh(logits / softcap).
    """
    logps = torch.empty(len(targets), len(choices), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        logits = output(hidden[part]).float()
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        for k, choice in enumerate(choices):
            logps[part, k] = logps_under(logits, targets[part], **asdict(choice))
    return logps


class AdaptiveModel:
    """A language model whose own `generate` draws as a head chooses.

    Args:
        model: a transformers causal language model, in eval mode.
        head: made for this model, on its device.
        select: the most likely choice, or one drawn from the head's distribution.

    After a call to `generate`, `chosen` holds the indices of the choices: [R] at the sequence level, and at the token
    level [R, T] for T new tokens. What stands behind a row's end there means nothing.

    Raises:
        InputError: the head was made for another hidden size.
    """

    def __init__(
        self, model: PreTrainedModel, head: AdaptiveHead, select: Literal["argmax", "sample"] = "argmax"
    ) -> None:
        size = model.get_output_embeddings().weight.shape[-1]
        if size != head.hidden_size:
            raise InputError(
                f"the head reads hidden states of size {head.hidden_size} and those of {type(model).__name__} have "
                f"size {size}: use the model it was made for"
            )
        self.model, self.head, self.select = model, head, select
        self.chosen = torch.empty(0, dtype=torch.int64)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, select: Literal["argmax", "sample"] = "argmax", device: str = "cpu"
    ) -> "AdaptiveModel":
        """Open a head's directory and the model that it names."""
        spec = open_spec(str(directory))
        return cls(load_model(spec, device=device), load_head(directory, device), select)

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """Return what `model.generate` does, one token at a time drawn as chosen; prompts are padded on the left.

        Raises:
            InputError: an option asks for beams, for drafts of another model, or for what the head chooses.
        """
        clash = sorted(name for name in (*_GENERATE, "assistant_model") if name in options)
        if clash:
            raise InputError(f"{clash[0]}={options[clash[0]]}: here a head chooses how tokens are drawn, so drop it")
        choosing = _Choosing(self.head, self.select)
        hook = self.model.get_output_embeddings().register_forward_pre_hook(choosing.read)
        processors = [*options.pop("logits_processor", ()), choosing]
        try:
            made = self.model.generate(*inputs, logits_processor=processors, **_GENERATE, **options)
        finally:
            hook.remove()
        length = (made if isinstance(made, Tensor) else made.sequences).shape[1]
        self.chosen = choosing.chosen(length)
        return made


class _Choosing:
    """Reads the hidden state of the last position and changes the logits there; `generate` calls it once per token."""

    def __init__(self, head: AdaptiveHead, select: Literal["argmax", "sample"]) -> None:
        self.head, self.select = head, select
        self._hidden = torch.empty(0)
        self._made: list[Tensor] = []
        self._before = 0

    def read(self, output: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._hidden = arguments[0][:, -1]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        if not self._made:
            self._before = input_ids.shape[1]
        if self.head.per_token or not self._made:
            logps = self.head(self._hidden)
            u = torch.rand(len(logps), dtype=torch.float64, device=logps.device)
            self._made.append(choose(logps, self.select, u))
        return adapted(logits, self._made[-1].to(logits.device), self.head.choices)

    def chosen(self, length: int) -> Tensor:
        # Where stopping is checked late, `generate` undoes its last steps.
        return torch.stack(self._made, 1)[:, : length - self._before] if self.head.per_token else self._made[0]


def adapted(logits: Tensor, chosen: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Return logits [R, V] whose softmax is the distribution of each row's choice [R]: minus infinity where it is 0."""
    result = torch.full_like(logits, -torch.inf)
    for k in chosen.unique().tolist():
        rows, choice = (chosen == k).nonzero().squeeze(-1), choices[k]
        own = logits[rows]
        if choice.temperature == 0:
            result[rows, own.max(-1).indices] = 0.0
            continue
        scores = (own - own.amax(-1, keepdim=True)).div_(choice.temperature)
        kept = keep(scores.exp(), choice.top_k, choice.top_p, choice.min_p)
        result[rows] = scores.masked_fill_(kept == 0, -torch.inf)
    return result


def _hidden_size(spec: ModelSpec) -> int:
    """Return the width of what the model's output layer reads, without loading weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(spec), trust_remote_code=spec.trust_remote_code)
    output = model.get_output_embeddings()
    if output is None:
        raise InputError(f"{spec.source} has no output layer that a head could read with: choose a language model")
    return output.weight.shape[-1]


def _check_choices(choices: Sequence[Choice]) -> None:
    if not choices:
        raise InputError("a head needs something to choose among: give choices")
    for k, c in enumerate(choices):
        if not (0 <= c.temperature < float("inf") and 0 < c.top_p <= 1 and c.top_k >= 0 and 0 <= c.min_p <= 1):
            raise InputError(
                f"choice {k} of the head is {c}: temperature and top_k are at least 0, top_p in (0, 1], min_p in [0, 1]"
            )
