from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.models.blt.conftest import TEXT, Build, calibrate, random_bytes
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralModel

from selftaught.errors import InputError
from selftaught.functional import patches as p
from selftaught.functional.byte_hash import ngram_hashes
from selftaught.models.blt import BltConfig, BltForCausalLM, ByteNgrams, byte_transformer_config
from selftaught.models.blt.layers import (
    Attention,
    ByteCrossAttention,
    MaskSight,
    PatchCrossAttention,
    Stack,
    attention_mask,
    mask_sight,
    sight,
)
from selftaught.models.blt.modeling import patches_of
from selftaught.models.blt.patchers import entropies

# Settings under which the entropy model's random scores make patches of a few bytes each.
INCREMENTAL: dict[str, dict[str, Any]] = {
    "entropy": {"patching": "entropy"},
    "monotonic": {"patching": "monotonic", "patching_threshold": 0.02},
    "both": {"patching": "both"},
    "space": {"patching": "space"},
    "stride": {"patching": "stride", "patch_size": 3},
    "byte": {"patching": "byte"},
    "one patch": {"patching_threshold": 99.0},
    "split": {"patching_threshold": 99.0, "max_patch_length": 5},
    "newlines": {"entropy_resets_at_newline": True},
    "encoder all": {"encoder_cross_attention": "all"},
    "released": {"documents": False, "double_residual": True, "divide_embeddings": False, "ngram_padding": "zero"},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "encoder all": {"encoder_cross_attention": "all"},
    "encoder none": {"encoder_cross_attention": "none"},
    "decoder first": {"decoder_cross_attention": "first"},
    "decoder none": {"decoder_cross_attention": "none"},
    "learned query": {"pooled_query": False},
    "no n-grams": {"ngram_sizes": ()},
    "padded n-grams": {"ngram_padding": "zero"},
    "undivided": {"divide_embeddings": False},
    "wide patches": {"patch_width": 3, "global_attention_heads": 4},
    "shared keys": {"global_key_value_heads": 2},
    "double residual": {"double_residual": True},
    "top_k": {"patching": "top_k"},
    "no limits": {"window": 512},
}


def logits_of(model: BltForCausalLM, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **inputs).logits


@pytest.mark.parametrize("mode", INCREMENTAL)
def test_a_byte_changes_nothing_before_it(build: Build, mode: str) -> None:
    model, ids = build(**INCREMENTAL[mode]), random_bytes(1, 30)
    ids[0, [6, 7, 13, 20]] = torch.tensor([p.EOS, p.BOS, 14, p.EOS])
    before, found = logits_of(model, ids), model.model.find_starts(ids)
    # A rule that finds nothing, or everything, would prove little.
    assert mode in ("byte", "one patch") or 5 < found.sum() < 25
    for t in range(30):
        changed = ids.clone()
        changed[0, t] = 4 + (int(ids[0, t]) + 77) % 256
        assert torch.equal(model.model.find_starts(changed)[:, : t + 1], found[:, : t + 1])
        torch.testing.assert_close(logits_of(model, changed)[:, :t], before[:, :t], rtol=0, atol=1e-5)


def test_top_k_patches_look_ahead(build: Build) -> None:
    model, ids = build(patching="top_k"), random_bytes(1, 30)
    before, changed = logits_of(model, ids), ids.clone()
    changed[0, 25:] = 50
    assert (logits_of(model, changed)[:, :25] - before[:, :25]).abs().max() > 1e-3


def test_a_byte_sees_all_its_patches_and_its_own_window(build: Build) -> None:
    """What lies 20 bytes back is out of every window, and comes through the patches alone."""
    model, ids = build(), random_bytes(1, 30)
    changed = ids.clone()
    changed[0, 2] = 50
    lengths = model.model.find_starts(ids)
    given = {"patch_lengths": p.patch_lengths(lengths)}
    difference = logits_of(model, changed, **given) - logits_of(model, ids, **given)
    assert difference[:, 25:].abs().max() > 1e-4


@pytest.mark.parametrize("name", ["default", "decoder none", "encoder none", "learned query", "top_k"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_very_different_length_equal_single_rows(build: Build, name: str, side: str) -> None:
    model, lengths = build(**ABLATIONS[name]), [40, 1, 17, 0, 2]
    ids, mask = torch.full((5, 40), 3), torch.zeros(5, 40, dtype=torch.int64)
    for row, n in enumerate(lengths):
        place = slice(0, n) if side == "right" else slice(40 - n, 40)
        ids[row, place], mask[row, place] = random_bytes(1, n, seed=row)[0], 1
    together = model(ids, attention_mask=mask)
    assert together.logits.isfinite().all()
    for row, n in enumerate(lengths):
        alone = model(random_bytes(1, n, seed=row))
        torch.testing.assert_close(together.logits[row][mask[row].bool()], alone.logits[0], rtol=0, atol=1e-5)
        found = together.patch_lengths[row]
        assert found[found > 0].tolist() == alone.patch_lengths[0].tolist()


def test_no_byte_and_one_byte(build: Build) -> None:
    model = build()
    empty = model(torch.zeros(2, 0, dtype=torch.int64))
    assert empty.logits.shape == (2, 0, 260) and empty.patch_lengths.tolist() == [[1], [1]]
    one = model(torch.tensor([[p.BOS]]), labels=torch.tensor([[p.BOS]]))
    assert one.logits.isfinite().all() and one.loss == 0


def test_a_text_longer_than_the_context(build: Build) -> None:
    """Windows and rotary positions have no end: `max_position_embeddings` is for callers who cut."""
    long, ids = build(max_position_embeddings=16), random_bytes(1, 50)
    assert torch.equal(logits_of(long, ids), logits_of(build(), ids))


def test_what_trainers_read(build: Build) -> None:
    """They apply the output layer themselves, to what the backbone gives first."""
    model, ids = build(), random_bytes(1, 20)
    hidden = model.base_model(input_ids=ids, use_cache=False)[0]
    assert torch.equal(model.get_output_embeddings()(hidden), logits_of(model, ids))
    assert model.get_input_embeddings().weight.shape == (260, 16)


@pytest.mark.parametrize("name", ABLATIONS)
def test_gradients_reach_all_that_is_trained(build: Build, name: str) -> None:
    model, ids = build(**ABLATIONS[name]), random_bytes(3, 24)
    lengths = torch.tensor([24, 3, 0])
    mask = (torch.arange(24) < lengths[:, None]).long()
    model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    for parameter, weight in model.named_parameters():
        if "entropy_model" in parameter:
            assert weight.grad is None and not weight.requires_grad, parameter
        else:
            assert weight.grad.isfinite().all() and weight.grad.abs().sum() > 0, parameter


def test_training_in_bfloat16(build: Build) -> None:
    exact, half, ids = build(patching="space"), build(patching="space").bfloat16(), random_bytes(2, 40)
    for model in (exact, half):
        model(ids, labels=ids).loss.backward()
    for (name, a), b in zip(exact.named_parameters(), half.parameters(), strict=True):
        if a.grad is not None:
            alike = F.cosine_similarity(a.grad.flatten(), b.grad.float().flatten(), dim=0)
            assert alike > 0.97, (name, alike)


def test_pooling_anew_in_every_layer_uses_the_last_cross_attention_alone(build: Build) -> None:
    same = {"patching": "stride", "patch_size": 3}
    running = build(encoder_cross_attention="all", **same)
    anew, last = build(encoder_cross_attention="all", repool=True, **same), build(**same)
    ids = random_bytes(1, 20)
    anew.load_state_dict(running.state_dict())
    kept = {k: v for k, v in running.state_dict().items() if not k.startswith("model.encoder.cross.0.")}
    last.load_state_dict({k.replace("encoder.cross.1.", "encoder.cross.0."): v for k, v in kept.items()})
    torch.testing.assert_close(logits_of(anew, ids), logits_of(last, ids))
    assert (logits_of(anew, ids) - logits_of(running, ids)).abs().max() > 1e-3


def test_given_patch_lengths(build: Build) -> None:
    model, ids = build(), random_bytes(2, 20)
    own = model(ids)
    torch.testing.assert_close(logits_of(model, ids, patch_lengths=own.patch_lengths), own.logits)
    # Lengths that say nothing of the byte to come: it goes on with the last patch.
    short = torch.tensor([[1, 9, 10], [1, 19, 0]])
    longer = torch.tensor([[1, 9, 11], [1, 20, 0]])
    closed = torch.tensor([[1, 9, 10, 1], [1, 19, 1, 0]])
    a, b, c = (logits_of(model, ids, patch_lengths=x) for x in (short, longer, closed))
    assert torch.equal(a, b)
    torch.testing.assert_close(a[:, :-1], c[:, :-1])
    assert ((a - c)[:, -1].abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("lengths", [[[1, 5, 3]], [[1, 12]], [[1, 11, -2]], [[]]])
def test_patch_lengths_that_do_not_fit(build: Build, lengths: list[list[int]]) -> None:
    with pytest.raises(InputError, match="patch_lengths of row 0 sum to"):
        build()(random_bytes(1, 10), patch_lengths=torch.tensor(lengths, dtype=torch.int64))


def test_patch_lengths_of_other_rows_do_not_fit(build: Build) -> None:
    with pytest.raises(InputError, match="patch_lengths of 1 rows for 2 rows of bytes"):
        build()(random_bytes(2, 10), patch_lengths=torch.tensor([[1, 10]]))


def test_a_rule_that_cannot_be_followed(build: Build) -> None:
    with pytest.raises(InputError, match="pass patch_lengths"):
        build(patching="explicit")(random_bytes(1, 4))
    with pytest.raises(InputError, match="give entropy_config"):
        build(entropy_config=None)(random_bytes(1, 4))
    with pytest.raises(InputError, match="row 1 has a gap"):
        build()(random_bytes(2, 3), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 1]]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"entropy_resets_at_newline": True},
        {"ngram_padding": "zero"},
        {"patching": "stride", "patch_size": 4},
        {"patching": "space"},
        {"patching": "monotonic", "patching_threshold": 0.01},
        {"max_patch_length": 3},
    ],
)
def test_documents_in_one_row_do_not_see_each_other(build: Build, changes: dict[str, Any]) -> None:
    model = build(**changes)
    documents = [F.pad(random_bytes(1, n, n), (1, 0), value=p.BOS) for n in (9, 1, 14)]
    documents = [F.pad(d, (0, 1), value=p.EOS) for d in documents]
    together = logits_of(model, torch.cat(documents, 1))
    alone = torch.cat([logits_of(model, d) for d in documents], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="second byte of every document"):
        model(torch.cat(documents, 1), patch_lengths=torch.tensor([[1, 10, 1, 19]]))
    blind = build(documents=False, **changes)
    assert (logits_of(blind, torch.cat(documents, 1)) - alone).abs().max() > 1e-3


def test_the_end_of_a_turn_is_not_the_end_of_a_document(build: Build) -> None:
    model, ids = build(), random_bytes(1, 20)
    ids[0, 9] = p.EOS
    changed = ids.clone()
    changed[0, 3] = 50
    assert (logits_of(model, ids) - logits_of(model, changed))[:, 10:].abs().max() > 1e-4
    assert model.model.find_starts(ids)[0, 10]


@pytest.mark.parametrize(("key_heads", "window"), [(4, None), (2, 5)])
def test_the_layers_agree_with_mistral(key_heads: int, window: int | None) -> None:
    config = MistralConfig(
        vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=key_heads, head_dim=8, sliding_window=window, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, ours = MistralModel(config).eval(), Stack(2, 32, 4, key_heads, 48, 1e-5, 100.0)
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up",
             "down_proj": "down", "self_attn": "attention", "mlp": "feed_forward", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "feed_forward_norm"}  # fmt: skip
    weights = {".".join(names.get(part, part) for part in key.split(".")): value
               for key, value in theirs.state_dict().items() if key.startswith("layers.")}  # fmt: skip
    ours.load_state_dict(weights)
    x = torch.randn(2, 12, 32)
    seen, (cos, sin) = sight(2, 12, window or 12, None, x.device), ours.rope(12, x.device)
    y = x
    for layer in ours.layers:
        y = layer(y, cos, sin, seen)
    expected = theirs(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(F.rms_norm(y, (32,), eps=1e-5), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "window"), [(9, 8), (11, 8), (12, 8), (50, 8), (33, 1), (40, 6), (64, 5), (30, 3)])
@pytest.mark.parametrize("documents", [False, True])
def test_attention_in_blocks_is_attention_under_a_mask(n: int, window: int, documents: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, n, 8), torch.randn(2, 2, n, 8), torch.randn(2, 2, n, 8)
    positions = torch.stack([torch.arange(n) % 13, torch.arange(n)]) if documents else None
    mask = attention_mask(n, window, positions, q.device)
    seen = mask_sight(2, n, window, positions, q.device)
    assert (seen.block is None) == (n <= 5 * -(-window // 4))
    assert seen.mask is not None and mask is not None
    expected = MaskSight(mask).attend(q, k, v)
    torch.testing.assert_close(seen.attend(q, k, v), expected)
    torch.testing.assert_close(sight(2, n, window, positions, q.device).attend(q, k, v), expected)


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Plain softmax attention of [Q, H, D] to [K, H, D] under a mask [Q, K]: [Q, H * D]."""
    scores = torch.einsum("qhd,khd->hqk", q, k).masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def test_patches_attend_to_their_bytes_and_bytes_to_the_last_complete_patch() -> None:
    torch.manual_seed(0)
    starts = torch.tensor([[True, True, False, False, True, False, False]])
    patches, numbers = patches_of(starts, None), torch.tensor([0, 1, 1, 1, 2, 2])
    x, slots = torch.randn(1, 6, 8), torch.randn(1, 3, 2, 8)
    across = PatchCrossAttention(8, 2, 1e-5, False)
    q, (k, v) = across.queries(slots)[0].flatten(0, 1), (y[0] for y in across.keys_values(x))
    own = torch.arange(3).repeat_interleave(2)[:, None] == numbers
    expected = slots + across.o(dense_attention(q, k, v, own)).view(1, 3, 2, 8)
    torch.testing.assert_close(across(slots, x, patches), expected)

    back = ByteCrossAttention(8, 2, 1e-5, True)
    q, (k, v) = back.queries(x)[0], (y[0].flatten(0, 1) for y in back.keys_values(slots))
    complete = torch.tensor([0, 0, 0, 1, 1, 1])  # byte 3 ends patch 1, and byte 6, to come, does not begin one
    seen = complete[:, None] == torch.arange(3).repeat_interleave(2)
    torch.testing.assert_close(back(x, slots, patches), 2 * x + back.o(dense_attention(q, k, v, seen))[None])


def test_patches_without_bytes_stay_as_they_are() -> None:
    torch.manual_seed(0)
    starts = torch.tensor([[True, True, True, True], [True, True, False, False]])
    patches = patches_of(starts, torch.tensor([3, 2]))
    slots = torch.randn(2, 3, 2, 8)
    across = PatchCrossAttention(8, 2, 1e-5, False)
    out = across(slots, torch.randn(2, 3, 8), patches)
    assert torch.equal(out[1, 2], slots[1, 2]) and not torch.equal(out[1, 1], slots[1, 1])


@pytest.mark.parametrize("padding", ["omit", "zero"])
def test_embeddings_are_sums_over_ngrams(build: Build, padding: str) -> None:
    model, ids = build(ngram_padding=padding), random_bytes(1, 6)
    encoder = model.model.encoder
    hashes = ngram_hashes(ids, (3, 4))[0] % 64
    expected = encoder.embed_tokens.weight[ids[0]].clone()
    for column, size in enumerate((3, 4)):
        for i in range(6):
            if padding == "zero" or i >= size - 1:
                expected[i] += encoder.ngrams.weight[64 * column + hashes[i, column]]
    torch.testing.assert_close(encoder.embed(ids, None)[0], expected / 3)
    undivided = build(ngram_padding=padding, divide_embeddings=False)
    torch.testing.assert_close(undivided.model.encoder.embed(ids, None)[0], expected)


def test_frequent_ngrams_have_rows_of_their_own(build: Build, tmp_path: Path) -> None:
    model = build(ngram_table="frequency", ngram_vocab=5)
    text = torch.tensor(list(b"abcabcabcabd abq")) + 4
    model.model.set_frequent_ngrams([text, text[:3]])
    table, codes = model.model.encoder.ngrams, ngram_hashes(text[None], (3, 4))[0]
    # abc 5 times, bca and cab 3 times; all of the others once.
    for i, frequent in ((2, True), (3, True), (4, True), (15, None)):
        present = bool((table.codes[0] == codes[i, 0]).any())
        assert frequent is None or present == frequent
    found = table(text[None], None)[0]
    row = table.codes[0].tolist().index(int(codes[2, 0]))
    torch.testing.assert_close(found[2], table.weight[row])
    unseen = table(torch.tensor([[200, 201, 202, 203]]), None)
    assert unseen.abs().sum() == 0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.model.encoder.ngrams.codes, table.codes)
    with pytest.raises(InputError, match="ngram_table='frequency'"):
        build().model.set_frequent_ngrams([text])


def test_the_loss_is_the_mean_over_labelled_bytes(build: Build) -> None:
    model, ids = build(), random_bytes(2, 10)
    labels = ids.clone()
    labels[0, :4] = labels[1, 5:] = -100
    out = model(ids, labels=labels)
    logps = out.logits.double().log_softmax(-1)
    terms = [-logps[r, i - 1, ids[r, i]] for r, i in [(0, i) for i in range(4, 10)] + [(1, i) for i in range(1, 5)]]
    torch.testing.assert_close(out.loss.double(), torch.stack(terms).mean())
    model.lm_head.weight.data.zero_()
    torch.testing.assert_close(model(ids, labels=ids).loss, torch.tensor(260.0).log())
    assert model(ids, labels=torch.full_like(ids, -100)).loss == 0


def test_some_logits_only(build: Build) -> None:
    model, ids = build(), random_bytes(2, 10)
    whole = logits_of(model, ids)
    torch.testing.assert_close(logits_of(model, ids, logits_to_keep=2), whole[:, -2:])
    torch.testing.assert_close(logits_of(model, ids, logits_to_keep=torch.tensor([4, 1])), whole[:, [4, 1]])
    assert model(ids, return_dict=False)[0].shape == whole.shape


@pytest.mark.parametrize("kind", ["transformer", "counts"])
def test_save_and_open(build: Build, ngrams: ByteNgrams, tmp_path: Path, kind: str) -> None:
    model, ids = build(), torch.tensor([list(TEXT[:60])]) + 4
    if kind == "counts":
        model.model.set_entropy_model(ngrams)
    calibrate(model, ids)
    before = model(ids)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, BltForCausalLM)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    assert torch.equal(logits_of(again, ids), before.logits)
    assert not any(x.requires_grad for x in again.model.entropy_model.parameters())
    # In bfloat16 the model rounds, and its patches do not.
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    out = half(ids)
    assert torch.equal(out.patch_lengths, before.patch_lengths) and 2 < out.patch_lengths.shape[1] < 61
    assert out.logits.dtype == torch.float32 and (out.logits - before.logits).abs().max() < 0.5


def test_an_entropy_model_is_in_float32_and_never_trained(build: Build) -> None:
    rounded = AutoModelForCausalLM.from_config(byte_transformer_config(width=16, layers=1, heads=2)).bfloat16().train()
    model = build(entropy_config=None, patching="space")
    model.model.set_entropy_model(rounded)
    kept = model.model.entropy_model
    assert kept is not None and not kept.training
    assert all(x.dtype == torch.float32 and not x.requires_grad for x in kept.parameters())
    assert model.train().model.encoder.training and not kept.training


def test_entropies_are_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(byte_transformer_config(width=32, layers=2, heads=2)).eval()
    ids = random_bytes(2, 20)
    plain = entropies(model, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(entropies(model, ids), plain)


def test_what_it_does_not_take_is_refused(build: Build) -> None:
    """peft names all arguments of transformers' models, without values."""
    model, ids = build(), random_bytes(1, 9)
    unset = {"inputs_embeds": None, "output_attentions": None, "output_hidden_states": False}
    torch.testing.assert_close(model(ids, **unset).logits, model(ids).logits)
    with pytest.raises(InputError, match="a BLT takes no inputs_embeds: pass input_ids"):
        model(ids, inputs_embeds=torch.zeros(1, 9, 16))


def test_initial_weights(build: Build) -> None:
    torch.manual_seed(0)
    model = BltForCausalLM(BltConfig(hidden_size=64, ngram_vocab=1000, num_hidden_layers=1, decoder_layers=1))
    widths = {"lm_head": 64, "model.encoder.ngrams": 64, "model.global_stack.layers.0.feed_forward.down": 352,
              "model.global_stack.layers.0.attention.q": 128, "model.encoder.patch_projection": 64}  # fmt: skip
    for name, width in widths.items():
        weight = model.get_submodule(name).weight
        # Cut at 3 standard deviations, a normal keeps 98.66% of its own.
        assert abs(weight.std().item() * width**0.5 - 0.9866) < 0.03 and weight.abs().max() <= 3 * width**-0.5, name
    assert all((x == 1).all() for name, x in model.named_parameters() if "norm" in name)


def test_transformers_generates_without_a_cache(build: Build) -> None:
    model = build()
    rows = [random_bytes(1, n, n)[0] for n in (5, 9)]
    mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
    padded = torch.stack([F.pad(rows[0], (4, 0)), rows[1]])
    out = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None,
                         pad_token_id=0)  # fmt: skip
    for row, ids in enumerate(rows):
        for _ in range(6):
            ids = torch.cat([ids, logits_of(model, ids[None])[0, -1:].argmax(-1)])
        assert out[row, -len(ids) :].tolist() == ids.tolist()
    with pytest.raises(InputError, match="needs the bytes still to come"):
        build(patching="top_k").generate(padded, attention_mask=mask, max_new_tokens=1)


def test_checkpointing_changes_no_gradient(build: Build) -> None:
    plain, saving, ids = build(), build(), random_bytes(1, 12)
    saving.activation_checkpointing_enable()
    for model in (plain.train(), saving.train()):
        model(ids, labels=ids).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patching": "words"}, "patching='words': choose one of entropy"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "cannot be divided among"),
        ({"encoder_cross_attention": "none", "pooled_query": False}, "nothing would reach"),
        ({"window": 0}, "window=0: give a whole number, at least 1"),
        ({"window": 2.5}, r"window=2\.5: give a whole number"),
        ({"patch_width": 2.5}, r"patch_width=2\.5: give a whole number"),
        ({"hidden_size": 0}, "hidden_size=0: give a whole number"),
        ({"intermediate_size": -3}, "intermediate_size=-3: give a whole number"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0: give a whole number"),
        ({"encoder_layers": 0}, "encoder_layers=0: give a whole number"),
        ({"ngram_vocab": 0}, "ngram_vocab=0: give a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: give a whole number"),
        ({"patch_size": float("nan")}, "patch_size=nan: give a number"),
        ({"patch_size": "4"}, "patch_size='4': give a number"),
        ({"patch_size": 0.5}, r"patch_size=0\.5: give at least 1"),
        ({"patching_threshold": float("nan")}, "patching_threshold=nan: give a number"),
        ({"max_patch_length": 2.5}, r"max_patch_length=2\.5: give a whole number"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "heads of even width"),
        ({"hidden_size": 8, "patch_width": 1, "num_attention_heads": 2}, "heads of even width"),
        ({"global_attention_heads": 4, "global_key_value_heads": 3}, "do not divide 4 global heads"),
        ({"ngram_sizes": (4, 3)}, "give them in ascending order"),
        ({"ngram_sizes": (3, 3)}, "give them in ascending order"),
        ({"ngram_sizes": (0, 3)}, "give a list of whole numbers of at least 1"),
        ({"ngram_sizes": [3.5]}, "give a list of whole numbers of at least 1"),
        ({"ngram_sizes": 3}, "ngram_sizes=3: give a list of whole numbers"),
        ({"ngram_sizes": None}, "ngram_sizes=None: give a list of whole numbers"),
        ({"vocab_size": 100}, "vocab_size=100: bytes and their special ids are 260"),
        ({"rope_theta": 0.0}, r"rope_theta=0\.0: give a number above 0"),
        ({"rms_norm_eps": -1.0}, r"rms_norm_eps=-1\.0: give a number above 0"),
        ({"entropy_config": {}}, "it must name its model_type"),
        ({"patching": "stride", "patch_size": 4.5}, "give a whole number of bytes"),
        ({"patching": "stride", "patch_size": 1e300}, "at most max_position_embeddings=8192"),
    ],
)
def test_configurations_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BltConfig(**changes)


def test_attention_layers_have_no_bias() -> None:
    assert all(x.dim() == 2 for x in Attention(8, 2, 2).parameters())


def test_entropy_transformers_are_small_windowed_mistrals() -> None:
    config = byte_transformer_config(width=32, layers=3, heads=2, window=64)
    assert (config.vocab_size, config.head_dim, config.sliding_window, config.num_hidden_layers) == (260, 16, 64, 3)
