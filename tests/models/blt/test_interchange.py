from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.models.blt.conftest import random_bytes
from transformers import MistralConfig

from selftaught.errors import InputError
from selftaught.functional.patches import calibrate_threshold
from selftaught.models.blt import BltConfig, BltForCausalLM, byte_transformer_config
from selftaught.models.blt.interchange import (
    SWITCHES,
    from_transformers,
    load_transformers_blt,
    save_transformers_blt,
    to_transformers,
)
from selftaught.models.blt.patchers import entropies

SIZES = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 256}
LOCAL = {**SIZES, "vocab_size": 260, "cross_attn_k": 2, "hidden_size": 32, "hidden_size_global": 64}


def released_format(encoder: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Return a small random model of transformers' own class with every feature on."""
    parts = {
        "patcher_config": {**SIZES, "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16,
                           "sliding_window": 7},
        "encoder_config": {**LOCAL, "cross_attn_all_layers": False, "intermediate_size": 40, **(encoder or {})},
        "decoder_config": {**LOCAL, "cross_attn_all_layers": True, "intermediate_size": 56, "head_dim": 16},
        "global_config": {**SIZES, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
                          "intermediate_size": 80, "head_dim": 16},
    }  # fmt: skip
    config = transformers.BltConfig(
        **{
            "cross_attn_k": 2,
            "encoder_hash_byte_group_size": [3, 4, 5],
            "encoder_hash_byte_group_vocab": 50,
            "max_position_embeddings": 256,
            "local_attention_window_len": 9,
            **parts,
            **changes,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BltForCausalLM(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def both(theirs: Any, ids: torch.Tensor, patch_length: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return their logits, ours, and our patch lengths, at a threshold that makes patches of this length."""
    ours = from_transformers(theirs)
    scores = entropies(ours.model.entropy_model, ids)
    threshold = -1.0 if patch_length == 1 else calibrate_threshold(scores, patch_length)
    theirs.config.patching_threshold = ours.config.patching_threshold = threshold
    with torch.no_grad():
        out = ours(ids)
        return theirs(ids, use_cache=False).logits, out.logits, out.patch_lengths


@pytest.mark.parametrize("patch_length", [1, 1.5, 3.0, 6.0, 50.0])
def test_the_same_logits(patch_length: float) -> None:
    theirs, ours, lengths = both(released_format(), random_bytes(3, 60), patch_length)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    mean = 180 / float((lengths > 0).sum())
    assert abs(mean / patch_length - 1) < 0.2 or patch_length == 50


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": {"cross_attn_all_layers": True}},
        {"encoder": {"num_hidden_layers": 1}},
        {"cross_attn_k": 2, "local_attention_window_len": 512},
        {"encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8]},
    ],
)
def test_the_same_logits_in_other_shapes(changes: dict[str, Any]) -> None:
    theirs, ours, _ = both(released_format(**changes), random_bytes(2, 60), 4.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_bytes_below_four_and_one_byte() -> None:
    model = released_format()
    for ids in (torch.tensor([[1, 100, 2, 1, 50, 3, 0, 80]]), torch.tensor([[70]]), torch.tensor([[70, 71]])):
        ours = from_transformers(model)
        with torch.no_grad():
            torch.testing.assert_close(ours(ids).logits, model(ids, use_cache=False).logits, rtol=0, atol=1e-4)


def test_split_patches_differ_only_where_the_row_ends() -> None:
    """Their last byte does not see a patch that has just been filled; ours does, as it will when the row goes on."""
    theirs, ours, _ = both(released_format(max_patch_length=3), random_bytes(1, 61), 50.0)
    torch.testing.assert_close(ours[:, :-1], theirs[:, :-1], rtol=0, atol=1e-4)


def test_every_switch_matters() -> None:
    """Each switch, set back to the paper's value, changes the logits: the agreement above is of all of them."""
    model, ids = from_transformers(released_format({"cross_attn_all_layers": True})), random_bytes(1, 60)
    ids[0, 20:22] = torch.tensor([2, 1])
    model.config.patching_threshold = calibrate_threshold(entropies(model.model.entropy_model, ids), 4.0)
    expected = model(ids).logits
    for name in ("documents", "ngram_padding", "divide_embeddings", "repool", "double_residual"):
        changed = BltForCausalLM(BltConfig(**{**model.config.to_dict(), name: getattr(BltConfig(), name)}))
        changed.load_state_dict(model.state_dict())
        assert (changed(ids).logits - expected).abs().max() > 1e-3, name


def test_boundaries_of_a_bf16_checkpoint_survive_saving(tmp_path: Path) -> None:
    ours, ids = from_transformers(released_format().to(torch.bfloat16)), random_bytes(4, 200)
    scores = entropies(ours.model.entropy_model, ids)
    ours.config.patching_threshold = calibrate_threshold(scores, 3.0)
    ours.save_pretrained(tmp_path)
    again = BltForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for model in (ours, again):
        assert model.lm_head.weight.dtype == torch.bfloat16
        assert {p.dtype for p in model.model.entropy_model.parameters()} == {torch.float32}
    assert torch.equal(entropies(again.model.entropy_model, ids), scores)


def test_there_and_back(tmp_path: Path) -> None:
    theirs = released_format()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_transformers_blt(tmp_path / "theirs")
    assert not any(x.requires_grad for x in ours.model.entropy_model.parameters())
    assert all(x.requires_grad for name, x in ours.named_parameters() if "entropy_model" not in name)
    save_transformers_blt(ours, tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert isinstance(again, transformers.BltForCausalLM)
    weights, known = again.state_dict(), theirs.state_dict()
    assert weights.keys() == known.keys() and all(torch.equal(weights[name], known[name]) for name in known)
    ids = random_bytes(1, 30)
    with torch.no_grad():
        assert torch.equal(again(ids, use_cache=False).logits, theirs(ids, use_cache=False).logits)
    # And through our own format.
    ours.save_pretrained(tmp_path / "ours")
    kept = BltForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(kept(ids).logits, ours(ids).logits)


def test_a_model_of_ours_goes_there() -> None:
    config = BltConfig(
        **{**SWITCHES, "hidden_size": 16, "num_attention_heads": 2, "global_attention_heads": 4, "encoder_layers": 2,
           "decoder_layers": 2, "num_hidden_layers": 2, "ngram_vocab": 40, "ngram_sizes": [3, 5], "window": 6,
           "decoder_cross_attention": "first", "entropy_config": byte_transformer_config(width=16, heads=2, window=5)}
    )  # fmt: skip
    torch.manual_seed(0)
    ours, ids = BltForCausalLM(config).eval(), random_bytes(2, 40)
    config.patching_threshold = calibrate_threshold(entropies(ours.model.entropy_model, ids), 4.0)
    with torch.no_grad():
        theirs = to_transformers(ours)(ids, use_cache=False).logits
        torch.testing.assert_close(ours(ids).logits, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_hash_byte_group_nb_functions": 2}, "several hash functions"),
        ({"patching_mode": "space"}, "patching_mode='space'"),
        ({"encoder": {"rms_norm_eps": 1e-3}}, "encoder and decoder that differ"),
        ({"encoder": {"hidden_act": "gelu"}}, "other than silu"),
    ],
)
def test_checkpoints_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_transformers(released_format(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"documents": True},
        {"ngram_sizes": []},
        {"patching": "space"},
        {"global_key_value_heads": 1},
        {"encoder_cross_attention": "none"},
        {"entropy_config": None},
        {"ngram_prime": 7},
    ],
)
def test_models_that_transformers_cannot_compute(changes: dict[str, Any]) -> None:
    entropy = MistralConfig(vocab_size=260, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                            num_key_value_heads=1, intermediate_size=8)  # fmt: skip
    small = {"hidden_size": 8, "num_attention_heads": 1, "global_attention_heads": 2, "ngram_vocab": 4,
             "entropy_config": entropy}  # fmt: skip
    model = BltForCausalLM(BltConfig(**{**SWITCHES, **small, **changes}))
    with pytest.raises(InputError, match=r"transformers' Blt cannot compute .*build the model with patching='entropy'"):
        to_transformers(model)
