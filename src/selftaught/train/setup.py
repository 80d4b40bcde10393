"""A model made ready for training: adapter, dropout off, checkpointing, the mode the probe allows, its shards."""

import sys
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, PreTrainedModel

from selftaught.errors import InputError
from selftaught.models.load import load_model
from selftaught.specs import Lora, ModelSpec, Training
from selftaught.train.attention import NAME, packed_attention
from selftaught.train.batching import Batcher
from selftaught.train.distributed import Ranks, shard
from selftaught.train.forward import TargetLogps, causal_lm
from selftaught.train.precision import Weights, resolve_precision
from selftaught.train.probe import Mode, choose_mode


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model on this rank: as a policy, its weights, what makes its batches, and whether rows are trees."""

    policy: TargetLogps
    weights: Weights
    batcher: Batcher
    tree: bool


def prepare(spec: ModelSpec, settings: Training, ranks: Ranks, pad_id: int) -> Prepared:
    """Open the model of `spec` as `settings` ask; all ranks take part."""
    opened = open_model(spec, settings, ranks.device)
    mode, reason = choose_mode(causal_lm(opened))
    if reason and ranks.rank == 0:
        print(reason, file=sys.stderr)
    policy = make_policy(opened, mode, settings)
    dtype = resolve_precision(settings.precision, ranks.device)
    sharded = settings.strategy == "fsdp2" and ranks.world > 1
    if sharded:
        shard(policy, causal_lm(policy.model)._no_split_modules or (), dtype)
    batcher = Batcher(
        packed=mode.packed, pad_id=pad_id, device=ranks.device, rank=ranks.rank, world=ranks.world, in_step=sharded
    )
    return Prepared(
        policy=policy,
        weights=Weights(policy, torch.float32 if sharded else dtype),
        batcher=batcher,
        tree=mode.packed and settings.tree_rows,
    )


def open_model(spec: ModelSpec, settings: Training, device: torch.device) -> PreTrainedModel:
    """Return the model of `spec` with float32 weights, ready to be trained.

    With `settings.lora` only an adapter is trained: a new one, or that of `spec` continued. Without, an adapter of
    `spec` is folded into the weights, which are then all trained.
    """
    model = load_model(spec, device=device, dtype=torch.float32)
    if settings.lora is None:
        # peft freezes the weights it adapts, and merging leaves them so.
        model = model.merge_and_unload().requires_grad_(True) if spec.adapter else model
    elif spec.adapter:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    else:
        model = _with_adapter(model, settings.lora)
    return model.train()


def make_policy(model: PreTrainedModel, mode: Mode, settings: Training) -> TargetLogps:
    """Return `model` as a function from batches to target log-probs, computed in `mode`.

    The model's own dropout is switched off, so that an update does not depend on how it is split; an adapter's stays.
    """
    _switch_off_dropout(model)
    if settings.activation_checkpointing:
        # Renamed in transformers 5.2x; the old name is to go in version 6.
        inner = causal_lm(model)
        getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)()
    if mode.packed:
        causal_lm(model).set_attn_implementation(NAME)
    if settings.compile:
        # Groups of rows change with every batch, so attention stays as it is and what lies between is compiled.
        AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
        causal_lm(model).base_model.compile(dynamic=True)
    return TargetLogps(model, chunked=mode.chunked)


def _with_adapter(model: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"no adapter fits lora.targets={list(lora.targets)}: {str(error).splitlines()[0]}") from None


def _switch_off_dropout(model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_" not in name:
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
