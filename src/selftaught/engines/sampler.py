"""The sampler: continuous batching of any `Decodable` under any `Policy`, and batch generation on top of it.

Prompts are read in order and their samples take seats as seats come free. A draw is a function of the row's seed and of
how often the row was asked, so that it does not depend on the rows beside it; see docs/design/decoding.md for when
whole rows are equal bit for bit.
"""

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from selftaught.engines.policy import Draw, Policy, SoftmaxPolicy
from selftaught.engines.rows import Event, Output, Request, Seats
from selftaught.engines.stopping import StopStrings, finished_text
from selftaught.errors import InputError
from selftaught.models.decodable import Decodable
from selftaught.models.load import tokenizer_fingerprint
from selftaught.models.probe import open_decodable
from selftaught.specs import Sampling
from selftaught.store.seeds import row_seed
from selftaught.text.templates import encode_prompt, end_token_ids
from selftaught.types import Completion, Prompt, completion_id

PREFILL_TOKENS = 2048
STOP_SETS = 256
CPU_SLOTS = ((3e6, 256), (2e7, 128), (float("inf"), 32))


@dataclass(slots=True)
class _Ready:
    """Prompts that were read together and whose samples wait for seats: `left` holds (row, request, sample)."""

    state: Any
    logits: Tensor
    hidden: Tensor
    left: deque[tuple[int, Request, int]]


@dataclass(slots=True)
class _Running:
    """The rows that decode: their seats [R], states, and what the model said last: logits [R, V] and hidden [R, d]."""

    seat: np.ndarray
    state: Any
    policy_state: Any
    logits: Tensor
    hidden: Tensor

    def join(self, other: "_Running") -> "_Running":
        return _Running(
            np.concatenate([self.seat, other.seat]),
            self.state.join(other.state),
            self.policy_state.join(other.policy_state),
            torch.cat([self.logits, other.logits]),
            torch.cat([self.hidden, other.hidden]),
        )


class Sampler:
    """Draws samples for requests, many rows at a time.

    Args:
        model: a transformers causal language model, in eval mode, or any `Decodable` that is not an nn.Module.
        tokenizer: turns ids into text, for stop strings and outputs.
        slots: rows that decode at once; by default chosen for the model's size and device (`default_slots`).
        policy: how rows decode.
        template: whose end-of-turn tokens end a row.
        share: let the samples of a prompt share its cache; pays off from two samples on.
    """

    def __init__(
        self,
        model: PreTrainedModel | Decodable,
        tokenizer: Any,
        *,
        slots: int | None = None,
        policy: Policy | None = None,
        template: str = "plain",
        share: bool = True,
    ) -> None:
        if isinstance(model, torch.nn.Module) and model.training:
            raise InputError(
                f"{type(model).__name__} is in training mode, where dropout is active: call model.eval() first"
            )
        self.model: Decodable = (
            open_decodable(model, slots or default_slots(model), share) if isinstance(model, torch.nn.Module) else model
        )
        self.tokenizer = tokenizer
        self.policy = policy or SoftmaxPolicy()
        self._stop_ids = np.array(sorted(_stop_ids(model, tokenizer, template)), np.int64)
        self._stops = StopStrings(tokenizer)
        self._seats = Seats(self.model.slots)
        self._waiting: deque[Request] = deque()
        self._ready: deque[_Ready] = deque()
        self._running: _Running | None = None

    @property
    def queued(self) -> int:
        """Requests not read yet."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether `run_step` has anything left to do."""
        return bool(self._waiting or self._ready or self._running)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InputError: its prompt is empty or leaves no room for a token in the model's context, or the policy
                cannot use one of its options.
        """
        for name, value in request.options.items():
            check = self.policy.options.get(name)
            if check is None:
                known = ", ".join(sorted(self.policy.options)) or "none"
                raise InputError(f"request {request.id} has the option {name!r}: this model's decoding knows {known}")
            if wanted := check(value):
                raise InputError(f"request {request.id} has {name}={value}: give {wanted}")
        check_fits(request.id, len(request.prompt), self.model.context)
        samples, tokens = len(request.seeds), request.sampling.max_tokens
        if samples < 1 or tokens < 1:
            raise InputError(
                f"request {request.id} asks for {samples} samples of {tokens} tokens: ask for 1 or more of each"
            )
        if len(self._stops.sets) > STOP_SETS:
            # A server is asked for ever new ones, and each holds a table over the vocabulary.
            self._stops.forget(np.unique(self._seats.stop_set[~self._seats.free]).tolist())
        self._stops.number(request.sampling.stop)
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """Drop a request wherever it is; there is no event. An unknown or finished id is ignored."""
        self._waiting = deque(r for r in self._waiting if r.id != request_id)
        for ready in self._ready:
            ready.left = deque(x for x in ready.left if x[1].id != request_id)
        self._ready = deque(r for r in self._ready if r.left)
        if self._running:
            kept = np.array([self._seats.request[s].id != request_id for s in self._running.seat.tolist()])
            if not kept.all():
                index = torch.from_numpy(np.flatnonzero(kept)).to(self._running.logits.device)
                logits, hidden = self._running.logits[index], self._running.hidden[index]
                self._running = self._keep(self._running, kept, logits, hidden)

    @torch.no_grad()
    def run_step(self) -> list[Event]:
        """Draw one token (or what the policy draws) in every running row and return what happened."""
        self._read_prompts()
        self._seat_samples()
        rows = self._running
        if rows is None:
            return []
        u = self._seats.next_uniforms(rows.seat).to(rows.logits.device)
        draw = self.policy(rows.logits, rows.hidden, rows.policy_state, u)
        tokens = draw.tokens.cpu().numpy()
        events = self._record(rows, draw, tokens)
        stopped, full = self._finished(rows, draw, tokens)
        done = stopped | full
        for row in np.flatnonzero(done).tolist():
            events.append(self._done(int(rows.seat[row]), bool(stopped[row])))
        self._running = self._advance(rows, draw, tokens, ~done)
        return events

    def _read_prompts(self) -> None:
        """Prefill ahead, so that a seat never stays empty for want of a prompt."""
        free = int(self._seats.free.sum())
        while self._waiting and sum(len(r.left) for r in self._ready) < free:
            batch = [self._waiting.popleft()]
            width, samples = len(batch[0].prompt), len(batch[0].seeds)
            while self._waiting and not self.model.prefill_alone and samples < free + self.model.slots:
                width = max(width, len(self._waiting[0].prompt))
                if width * (len(batch) + 1) > PREFILL_TOKENS:
                    break
                batch.append(self._waiting.popleft())
                samples += len(batch[-1].seeds)
            logits, hidden, state = self.model.prefill([torch.tensor(r.prompt) for r in batch])
            left = deque((row, r, k) for row, r in enumerate(batch) for k in range(len(r.seeds)))
            self._ready.append(_Ready(state, logits, hidden, left))

    def _seat_samples(self) -> None:
        """Give free seats to samples, in order; a few at a time, because seating costs as much for one as for many."""
        free = int(self._seats.free.sum())
        waiting = sum(len(r.left) for r in self._ready)
        if not waiting or free < min(waiting, max(1, self.model.slots // 16)):
            return
        while free and self._ready:
            ready = self._ready[0]
            taken = [ready.left.popleft() for _ in range(min(free, len(ready.left)))]
            free -= len(taken)
            self._start(ready, taken)
            if not ready.left:
                self._ready.popleft()

    def _start(self, ready: _Ready, taken: list[tuple[int, Request, int]]) -> None:
        rows = torch.tensor([row for row, _, _ in taken])
        seat = self._seats.take(
            [(request, sample) for _, request, sample in taken],
            stop_sets=[self._stops.number(request.sampling.stop) for _, request, _ in taken],
            limits=[self._limit(request) for _, request, _ in taken],
        )
        policy_state = self.policy.start([request for _, request, _ in taken], self.model.embed)
        logits, hidden = (x[rows.to(x.device)] for x in (ready.logits, ready.hidden))
        started = _Running(seat, ready.state.fork(rows, 1), policy_state, logits, hidden)
        self._running = self._running.join(started) if self._running else started

    def _limit(self, request: Request) -> int:
        # The last token drawn is never fed, so it needs no position.
        room = (
            request.sampling.max_tokens if self.model.context is None else self.model.context - len(request.prompt) + 1
        )
        return min(request.sampling.max_tokens, room)

    def _record(self, rows: _Running, draw: Draw, tokens: np.ndarray) -> list[Event]:
        drawn = tokens >= 0
        seat, tokens, logprobs = rows.seat[drawn], tokens[drawn], draw.logprobs.float().cpu().numpy()[drawn]
        if not np.isfinite(logprobs).all():
            bad = int(seat[~np.isfinite(logprobs)][0])
            name, n = self._seats.request[bad].id, self._seats.count[bad]
            raise InputError(
                f"the logits for prompt {name} are not finite after {n} tokens: check the model's weights and dtype"
            )
        self._seats.record(seat, tokens, logprobs)
        if draw.latents:
            self._seats.record_latents(rows.seat, {k: v.float().cpu().numpy() for k, v in draw.latents.items()})
        events = []
        for i in np.flatnonzero(self._seats.stream[seat]).tolist():
            events.append(self._event("token", int(seat[i]), token=int(tokens[i]), logprob=float(logprobs[i])))
        return events if draw.retract is None else events + self._retract(rows, draw.retract.cpu().numpy())

    def _retract(self, rows: _Running, counts: np.ndarray) -> list[Event]:
        events = []
        for row in np.flatnonzero(counts > 0).tolist():
            seat = int(rows.seat[row])
            count = self._seats.retract(seat, int(counts[row]))
            if self._seats.stream[seat]:
                events.append(self._event("retract", seat, count=count))
        return events

    def _finished(self, rows: _Running, draw: Draw, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows stopped and which ran out of tokens or context."""
        if draw.truncate is not None:
            lengths = draw.truncate.cpu()
            cut = (lengths >= 0).nonzero().squeeze(-1)
            rows.state.truncate(cut, lengths[cut])
        stopped = np.isin(tokens, self._stop_ids)
        if draw.finished is not None:
            stopped |= draw.finished.cpu().numpy()
        stop_sets = self._seats.stop_set[rows.seat]
        if stop_sets.any():
            for row in self._stops.candidates(stop_sets, tokens).tolist():
                stopped[row] |= self._stops.reached(int(stop_sets[row]), self._seats.standing(int(rows.seat[row])))
        full = self._seats.count[rows.seat] >= self._seats.limit[rows.seat]
        if self.model.context is not None:
            full |= rows.state.lengths.numpy() >= self.model.context
        return stopped, full

    def _done(self, seat: int, stopped: bool) -> Event:
        ids = self._seats.standing(seat)
        if ids and ids[-1] in self._stop_ids:
            ids.pop()
        text = self._stops.cut(int(self._seats.stop_set[seat]), finished_text(self.tokenizer, ids))
        return self._event("done", seat, output=self._seats.output(seat, text, "stop" if stopped else "length"))

    def _event(self, kind: Literal["token", "retract", "done"], seat: int, **fields: Any) -> Event:
        return Event(kind=kind, request=self._seats.request[seat].id, sample=int(self._seats.sample[seat]), **fields)

    def _advance(self, rows: _Running, draw: Draw, tokens: np.ndarray, kept: np.ndarray) -> _Running | None:
        """Feed what the rows that go on drew."""
        inputs = draw.tokens if draw.next_inputs is None else draw.next_inputs
        if draw.next_inputs is None and (tokens[kept] < 0).any():
            name = type(self.policy).__name__
            raise ValueError(f"{name} drew no token for a row: give next_inputs to feed in its place")
        going: _Running | None = rows
        if not kept.all():
            inputs = inputs[torch.from_numpy(kept).to(inputs.device)]
            going = self._keep(rows, kept, rows.logits, rows.hidden)
        if going is not None:
            going.logits, going.hidden, going.state = self.model.step(going.state, inputs)
        return going

    def _keep(self, rows: _Running, kept: np.ndarray, logits: Tensor, hidden: Tensor) -> _Running | None:
        """Return the rows where `kept` [R] is set, with these logits, and free the seats of the others."""
        self._seats.leave(rows.seat[~kept])
        index = torch.from_numpy(np.flatnonzero(kept))
        state, policy_state = rows.state.select(index), rows.policy_state.select(index)
        return _Running(rows.seat[kept], state, policy_state, logits, hidden) if len(index) else None


def default_slots(model: PreTrainedModel, columns: int = 512) -> int:
    """Return how many rows decode at once: what keeps the processor busy, its cache in at most a quarter of the memory.

    Args:
        model: the weights, where they will run.
        columns: positions a row is expected to store.
    """
    weight = next(model.parameters())
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    values = base.cached_per_position if hasattr(base, "cached_per_position") else _keys_and_values(model)
    row = values * columns * weight.element_size()
    if weight.device.type == "cuda":
        wanted, memory = 256, torch.cuda.get_device_properties(weight.device).total_memory
    else:
        parameters = sum(p.numel() for p in model.parameters())
        wanted = next(slots for limit, slots in CPU_SLOTS if parameters < limit)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(8, min(wanted, memory // 4 // row // 8 * 8))


def _keys_and_values(model: PreTrainedModel) -> int:
    """Return how many numbers a transformer keeps of each position."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    return 2 * text.num_hidden_layers * key_heads * head_dim


def check_fits(name: str, tokens: int, context: int | None) -> None:
    """Raise InputError where a prompt of this many tokens leaves no room for an answer, or is empty."""
    if tokens == 0:
        raise InputError(f"prompt {name} is empty: give it text, or use a tokenizer that adds a BOS token")
    if context is not None and tokens >= context:
        raise InputError(f"prompt {name} has {tokens} tokens but the model's context is {context}: shorten it")


def generate(
    model: PreTrainedModel | Decodable,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    seed: int,
    stage_key: str = "",
    template: str = "plain",
    model_id: str = "",
    slots: int | None = None,
    first_k: int = 0,
    policy: Policy | None = None,
    progress: bool | None = None,
) -> Iterator[list[Completion]]:
    """Return an iterator of `sampling.k` completions per prompt, in prompt order, numbered from `first_k`.

    A sample depends on `seed`, the prompt's id and its number, so that sample 3 of 4 is sample 3 of 8. `progress` None
    shows a bar on a terminal only.

    Raises:
        InputError: before anything is sampled, where a prompt does not fit the model's context.
    """
    encoded = [tuple(encode_prompt(tokenizer, prompt, template)) for prompt in prompts]
    if slots is None and isinstance(model, torch.nn.Module):
        slots = default_slots(model, sampling.max_tokens + max(map(len, encoded), default=0))
    sampler = Sampler(model, tokenizer, slots=slots, policy=policy, template=template, share=sampling.k > 1)
    for prompt, ids in zip(prompts, encoded, strict=True):
        check_fits(prompt.id, len(ids), sampler.model.context)
    numbers = range(first_k, first_k + sampling.k)
    requests = deque(
        Request(id=str(i), prompt=ids, sampling=sampling, seeds=tuple(row_seed(seed, prompt.id, k) for k in numbers))
        for i, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True))
    )
    fingerprint = tokenizer_fingerprint(tokenizer)

    def complete(prompt: Prompt, outputs: list[Output]) -> list[Completion]:
        rows = zip(numbers, outputs, strict=True)
        return [completion_of(prompt, k, output, stage_key, model_id, fingerprint) for k, output in rows]

    return (complete(prompts[i], outputs) for i, outputs in run_requests(sampler, requests, sampling.k, progress))


def run_requests(
    sampler: Sampler, requests: deque[Request], k: int, progress: bool | None
) -> Iterator[tuple[int, list[Output]]]:
    """Run all requests, whose ids are "0", "1", ...; yield (number, its k outputs) in that order."""
    # Left to itself, tqdm hides its bar where there is no terminal or TQDM_DISABLE is set.
    shown: dict[str, Any] = {} if progress is None and sys.stderr.isatty() else {"disable": not progress}
    outputs: dict[int, dict[int, Output]] = {}
    coming = 0
    with tqdm(total=len(requests) * k, unit="sample", leave=False, **shown) as bar:
        while requests or sampler.busy:
            while requests and sampler.queued < sampler.model.slots:
                sampler.submit(requests.popleft())
            for event in sampler.run_step():
                if event.output is not None:
                    outputs.setdefault(int(event.request), {})[event.sample] = event.output
                    bar.update()
            while len(outputs.get(coming, ())) == k:
                found = outputs.pop(coming)
                yield coming, [found[i] for i in range(k)]
                coming += 1


def completion_of(
    prompt: Prompt, k: int, output: Output, stage_key: str, model_id: str, fingerprint: str
) -> Completion:
    """Return a finished sample as the row it is stored as."""
    return Completion(
        prompt_id=prompt.id,
        k=k,
        text=output.text,
        token_ids=output.token_ids,
        logprobs=output.logprobs,
        finish=output.finish,
        discarded=output.discarded,
        latents=output.latents,
        model=model_id,
        tokenizer=fingerprint,
        id=completion_id(stage_key, prompt.id, k),
    )


def _stop_ids(model: Any, tokenizer: Any, template: str) -> set[int]:
    """Return the end-of-turn ids of the template and those the model's generation settings name."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = [named] if isinstance(named, int) else named or []
    return {*end_token_ids(tokenizer, template), *named}
