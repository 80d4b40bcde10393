"""Decoding byte by byte gives the boundaries and the logits of full forwards, whatever happens to the rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models.blt.conftest import Build
from transformers import LlamaConfig

from selftaught.errors import InputError
from selftaught.functional import patches as p
from selftaught.functional.patches import calibrate_threshold
from selftaught.models import matmul
from selftaught.models.blt import BltForCausalLM, ByteNgrams
from selftaught.models.blt.decodable import BltDecodable
from selftaught.models.blt.patchers import entropies
from selftaught.models.probe import open_decodable

RULES: dict[str, dict[str, Any]] = {
    "entropy": {"patching": "entropy"},
    "one patch": {"patching": "entropy", "patching_threshold": 99.0},
    "a patch per byte": {"patching": "entropy", "patching_threshold": -1.0},
    "monotonic": {"patching": "monotonic"},
    "both": {"patching": "both"},
    "space": {"patching": "space"},
    "stride": {"patching": "stride", "patch_size": 3},
    "byte": {"patching": "byte"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "split": {"max_patch_length": 2},
    "one document": {"documents": False},
    "newlines": {"entropy_resets_at_newline": True},
    "newlines, one document": {"entropy_resets_at_newline": True, "documents": False},
    "encoder all": {"encoder_cross_attention": "all"},
    "encoder all, repooled": {"encoder_cross_attention": "all", "repool": True, "double_residual": True},
    "encoder none": {"encoder_cross_attention": "none"},
    "decoder first": {"decoder_cross_attention": "first"},
    "decoder none": {"decoder_cross_attention": "none"},
    "learned query": {"pooled_query": False, "encoder_cross_attention": "all"},
    "no n-grams": {"ngram_sizes": ()},
    "zero padding": {"ngram_padding": "zero", "divide_embeddings": False},
    "frequent n-grams": {"ngram_table": "frequency"},
    "narrow patches": {"patch_width": 1},
    "wide patches": {"patch_width": 3, "global_attention_heads": 4, "global_key_value_heads": 2},
    "no window": {"window": 512},
    "a window of one": {"window": 1},
}
COMBINED = {
    "released": {**SHAPES["zero padding"], "documents": False, "double_residual": True, "repool": True},
    "everything": {**SHAPES["encoder all, repooled"], **SHAPES["newlines"], "max_patch_length": 5, "window": 5,
                   "decoder_cross_attention": "first", "ngram_table": "frequency", "patch_width": 1},
}  # fmt: skip


def text(n: int, seed: int) -> torch.Tensor:
    """Return bytes of words and lines, and of two documents where they are long enough."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.tensor(list(b"the cat sat on\n")) + p.OFFSET
    ids = letters[torch.randint(len(letters), (n,), generator=generator)]
    ids[torch.rand(n, generator=generator) < 0.1] = p.EOS
    for place in (0, 6, 19):
        if place < n:
            ids[place] = p.BOS
            ids[place - 1 : place] = p.EOS
    return ids


def blt(build: Build, ngrams: ByteNgrams | None, **changes: Any) -> BltForCausalLM:
    """Return a tiny model whose rule gives patches of about 3 bytes, unless a threshold is given."""
    model = build(**changes)
    if ngrams is not None:
        model.model.set_entropy_model(ngrams)
    config = model.config
    scores = entropies(model.model.entropy_model, torch.stack([text(60, seed) for seed in range(4)]))
    if "patching_threshold" not in changes:
        rises = scores.diff(dim=1)
        config.patching_threshold = calibrate_threshold(rises if config.patching == "monotonic" else scores, 3.0)
        if config.patching == "both":
            config.patching_threshold = float(scores.median()) - 1e-3
            config.patching_rise = calibrate_threshold(rises, 2.5)
    if config.ngram_table == "frequency":
        model.model.set_frequent_ngrams([text(60, seed) for seed in range(2)])
    return model


class Rows:
    """Rows as they are decoded, and the logits that were given for their last bytes."""

    def __init__(self, decodable: BltDecodable) -> None:
        self.decodable = decodable
        self.ids: list[torch.Tensor] = []
        self.given: list[dict[int, torch.Tensor]] = []

    def add(self, ids: Sequence[torch.Tensor], logits: Sequence[torch.Tensor | None]) -> None:
        """Put rows beside those that are there."""
        self.ids += ids
        self.given += [{} if x is None else {len(row): x} for row, x in zip(ids, logits, strict=True)]

    def feed(self, inputs: torch.Tensor, logits: torch.Tensor) -> None:
        """Append a byte to every row."""
        self.ids = [torch.cat([row, i[None]]) for row, i in zip(self.ids, inputs, strict=True)]
        for row, given, x in zip(self.ids, self.given, logits, strict=True):
            given[len(row)] = x

    @torch.no_grad()
    def check(self, state: Any) -> None:
        """The boundaries are those of full forwards, and then every logit that was given is."""
        model, notes = self.decodable.model, state.cache.notes
        assert state.lengths.tolist() == [len(row) for row in self.ids]
        for slot, row, given in zip(state.slot.tolist(), self.ids, self.given, strict=True):
            starts = model.model.find_starts(row[None])[0]
            n = len(row)
            assert notes.closed[slot, :n].tolist() == (starts.cumsum(0)[1:] - 1).tolist()
            assert notes.begin[slot, :n].tolist() == [max(j for j in range(i + 2) if starts[j]) for i in range(n)]
            if given:
                expected = model(row[None]).logits[0, torch.tensor([*given]) - 1]
                torch.testing.assert_close(torch.stack([*given.values()]), expected, rtol=0, atol=1e-4)
                given.clear()


def follow(model: BltForCausalLM, steps: int = 30) -> None:
    """Rows of all lengths that fork, leave, join late, and are cut back, byte by byte against full forwards."""
    decodable = BltDecodable(model, 16)
    prompts = [text(n, n) for n in (1, 17, 8, 2)]
    logits, hidden, parked = decodable.prefill(prompts)
    torch.testing.assert_close(model.lm_head(hidden).float(), logits)
    rows = Rows(decodable)
    rows.add(prompts, list(logits))
    rows.check(parked)
    state, rows = parked.fork(torch.arange(3), 2), Rows(decodable)
    rows.add([prompts[i] for i in range(3) for _ in range(2)], [None] * 6)
    fed = [text(steps, 100 + i) for i in range(12)]
    for step in range(steps):
        inputs = torch.stack([fed[i][step] for i in range(len(rows.ids))])
        logits, hidden, state = decodable.step(state, inputs)
        rows.feed(inputs, logits)
        if step in (8, 14, 22, steps - 1):
            rows.check(state)
        if step == 8:
            kept = [5, 0, 3]
            state = state.select(torch.tensor(kept)).join(parked.fork(torch.tensor([3, 1]), 1))
            rows.ids, rows.given = [rows.ids[i] for i in kept], [{} for _ in kept]
            rows.add([prompts[3], prompts[1]], [None] * 2)
        if step == 14:
            state.truncate(torch.tensor([0, 3, 4]), torch.tensor([10, 1, 0]))
            for row, n in ((0, 10), (3, 1), (4, 0)):
                rows.ids[row] = rows.ids[row][:n]
        if step == 22:
            state = state.join(state.fork(torch.tensor([4, 1]), 2))
            rows.add([rows.ids[i] for i in (4, 4, 1, 1)], [None] * 4)
    torch.testing.assert_close(model.lm_head(hidden).float(), logits)


@pytest.mark.parametrize("counts", [False, True], ids=["transformer", "counts"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(build: Build, ngrams: ByteNgrams, rule: str, counts: bool) -> None:
    model = blt(build, ngrams if counts else None, **RULES[rule])
    follow(model)
    found = torch.stack([model.model.find_starts(text(60, seed)[None])[0].sum() for seed in range(4)])
    # A rule that finds nothing, or everything, would prove little. Documents begin patches, too.
    assert {"one patch": found.max() < 30, "byte": found.min() == 61, "a patch per byte": found.min() == 61}.get(
        rule, 12 < found.min() <= found.max() < 50
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(build: Build, shape: str) -> None:
    follow(blt(build, None, **SHAPES[shape]))


@pytest.mark.parametrize("counts", [False, True], ids=["transformer", "counts"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("combined", COMBINED)
def test_rules_and_shapes_together(build: Build, ngrams: ByteNgrams, combined: str, rule: str, counts: bool) -> None:
    follow(blt(build, ngrams if counts else None, **COMBINED[combined], **RULES[rule]), steps=24)


@pytest.mark.parametrize("fast", [False, True], ids=["default matmul", "fast matmul"])
@pytest.mark.parametrize("counts", [False, True], ids=["transformer", "counts"])
def test_a_row_has_the_same_bits_whatever_runs_beside_it(
    build: Build, ngrams: ByteNgrams, counts: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "LARGE", 1 if fast else 2**40)
    model = blt(build, ngrams if counts else None, hidden_size=64, global_attention_heads=4, window=16)
    fed = [text(40, 100 + i) for i in range(28)]

    def decoded(companions: int) -> list[torch.Tensor]:
        decodable = BltDecodable(model, 24)
        _, _, watched = decodable.prefill([text(9, 9)])
        state, seen = watched.fork(torch.tensor([0]), 1), []
        for step in range(40):
            if step == 5 and companions:
                _, _, others = decodable.prefill([text(12, 3)])
                state = state.join(others.fork(torch.tensor([0]), companions))
            if step == 25 and companions:
                # The slots in between are free again, and the row is not the first any more.
                state = state.select(torch.tensor([3, 0, 2]))
            rows = len(state.slot)
            place = 1 if rows == 3 else 0
            inputs = torch.stack([fed[0 if i == place else 7 + i][step] for i in range(rows)])
            logits, _, state = decodable.step(state, inputs)
            seen.append(logits[place])
        return seen

    alone = decoded(0)
    for companions in (3, 19):
        assert all(torch.equal(a, b) for a, b in zip(alone, decoded(companions), strict=True))


def test_long_rows_among_short_ones(build: Build, ngrams: ByteNgrams) -> None:
    """Buffers grow while rows are in them, and a prompt may be longer than all of them."""
    model = blt(build, ngrams)
    decodable = BltDecodable(model, 8)
    rows, short, long = Rows(decodable), text(3, 0), text(150, 1)
    _, _, parked = decodable.prefill([short])
    state = parked.fork(torch.tensor([0]), 1)
    rows.add([short], [None])
    fed = text(90, 2)
    for step in range(90):
        if step == 20:
            _, _, late = decodable.prefill([long])
            state = state.join(late.fork(torch.tensor([0]), 1))
            rows.add([long], [None])
        inputs = fed[step].expand(len(rows.ids))
        logits, _, state = decodable.step(state, inputs)
        rows.feed(inputs, logits)
    rows.check(state)


def test_slots_are_given_back(build: Build, ngrams: ByteNgrams) -> None:
    decodable = BltDecodable(blt(build, ngrams), 8)
    _, _, parked = decodable.prefill([text(5, 0)])
    state = parked.fork(torch.tensor([0]), 8)
    with pytest.raises(RuntimeError, match="1 rows need a slot and 0 of 8 are free"):
        parked.fork(torch.tensor([0]), 1)
    state = state.select(torch.tensor([6]))
    assert parked.fork(torch.tensor([0, 0]), 3).slot.tolist() == [0, 1, 2, 3, 4, 5]
    assert state.lengths.tolist() == [5]


def test_prompts_can_be_stepped_joined_and_cut_without_forking(build: Build, ngrams: ByteNgrams) -> None:
    model = blt(build, ngrams)
    decodable = BltDecodable(model, 8)
    one, two = (decodable.prefill([text(n, n)])[2] for n in (12, 9))
    one.truncate(torch.tensor([0]), torch.tensor([7]))
    logits, _, state = decodable.step(one.join(two), torch.tensor([70, 71]))
    rows = Rows(decodable)
    rows.add([torch.cat([text(12, 12)[:7], torch.tensor([70])]), torch.cat([text(9, 9), torch.tensor([71])])], logits)
    rows.check(state)


@pytest.mark.parametrize("counted", [True, False])
def test_what_is_returned_may_be_written_into_and_the_model_trained_after(
    build: Build, ngrams: ByteNgrams, counted: bool
) -> None:
    """Neither holds for tensors of inference mode, in which a step computes."""
    model = blt(build, ngrams if counted else None)
    decodable = BltDecodable(model, 8)
    state = decodable.prefill([text(12, 0)])[2].fork(torch.tensor([0]), 2)
    for i in range(70):
        logits, hidden, state = decodable.step(state, torch.tensor([70 + i, 90]))
        logits += 1.0
        hidden *= 2.0
        state = state.fork(torch.tensor([1]), 1).join(state.select(torch.tensor([0])))
    model.train()
    ids = text(20, 1)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


def test_bfloat16(build: Build, tmp_path: Path) -> None:
    blt(build, None, encoder_cross_attention="all").save_pretrained(tmp_path)
    model = BltForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    decodable, prompt = BltDecodable(model, 8), text(20, 0)
    logits, _, state = decodable.prefill([prompt])
    assert logits.dtype == torch.float32
    for i in text(30, 1):
        logits, hidden, state = decodable.step(state, i[None])
        prompt = torch.cat([prompt, i[None]])
        expected = model(prompt[None])
        assert hidden.dtype == torch.bfloat16 and (logits - expected.logits[:, -1]).abs().max() < 0.1
    assert state.cache.notes.closed[0, 49] == (expected.patch_lengths > 0).sum() - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patching": "top_k"}, "patching='top_k' needs the bytes still to come"),
        ({"patching": "explicit"}, "patching='explicit' needs the bytes still to come"),
        ({"entropy_config": None}, "patching='entropy' without an entropy model"),
        ({"entropy_config": LlamaConfig(vocab_size=260, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)},
         "LlamaForCausalLM, which cannot be read byte by byte"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_decoded(build: Build, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_decodable(build(**changes, patching_threshold=1.0), 8)


def test_what_is_not_a_byte_is_refused(build: Build, ngrams: ByteNgrams) -> None:
    decodable = open_decodable(blt(build, ngrams), 8)
    assert isinstance(decodable, BltDecodable) and decodable.context == 8192
    _, _, state = decodable.prefill([text(4, 0)])
    for refused in (
        lambda: decodable.embed(torch.tensor([5])),
        lambda: decodable.prefill([torch.zeros(3, 16)]),
        lambda: decodable.step(state, torch.zeros(1, 16)),
    ):
        with pytest.raises(InputError, match="reads bytes, not vectors"):
            refused()
    with pytest.raises(InputError, match="a prompt without bytes"):
        decodable.prefill([torch.zeros(0, dtype=torch.int64)])
    with pytest.raises(InputError, match="slots is 4: use at least 8"):
        BltDecodable(decodable.model, 4)


def test_an_adapter_is_decoded_with_its_model(build: Build, ngrams: ByteNgrams) -> None:
    model = blt(build, ngrams)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q", "v"], init_lora_weights=False)).eval()
    decodable, prompt = open_decodable(adapted, 8), text(12, 0)
    assert isinstance(decodable, BltDecodable)
    _, _, state = decodable.prefill([prompt])
    logits, _, _ = decodable.step(state, torch.tensor([80]))
    expected = adapted(torch.cat([prompt, torch.tensor([80])])[None]).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    with adapted.disable_adapter():
        assert (adapted(torch.cat([prompt, torch.tensor([80])])[None]).logits[:, -1] - expected).abs().max() > 1e-2
