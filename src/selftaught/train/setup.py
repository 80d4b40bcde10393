"""A model made ready for training: adapter, dropout off, checkpointing, the mode the probe allows, its shards."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from transformers import AttentionInterface, PreTrainedModel

from selftaught.errors import InputError
from selftaught.models.adaptive_decoder import load_head
from selftaught.models.load import load_model, load_reward_model
from selftaught.models.special_tokens import TRAINED_WITH_ADAPTERS
from selftaught.specs import Adaptive, Lora, ModelSpec, Training
from selftaught.train.attention import NAME, packed_attention
from selftaught.train.batching import Batcher
from selftaught.train.choices import HeadChoices
from selftaught.train.distributed import Ranks, shard
from selftaught.train.forward import TargetLogps, causal_lm
from selftaught.train.precision import Weights, resolve_precision
from selftaught.train.probe import Mode, choose_mode
from selftaught.train.rewards import Rewards

Policy = TypeVar("Policy", TargetLogps, Rewards, HeadChoices)


@dataclass(frozen=True, kw_only=True)
class Prepared(Generic[Policy]):
    """A model on this rank: as a policy, its weights, what makes its batches, and whether rows are trees."""

    policy: Policy
    weights: Weights
    batcher: Batcher
    tree: bool


def prepare(spec: ModelSpec, settings: Training, ranks: Ranks, pad_id: int) -> Prepared[TargetLogps]:
    """Open the language model of `spec` as `settings` ask; all ranks take part."""
    opened = open_model(spec, settings, ranks.device)
    mode, reason = choose_mode(causal_lm(opened))
    if reason and ranks.rank == 0:
        print(reason, file=sys.stderr)
    return _placed(make_policy(opened, mode, settings), mode.packed, pad_id, settings, ranks)


def prepare_rewards(
    spec: ModelSpec, settings: Training, ranks: Ranks, own_pad_id: int, pad_id: int
) -> Prepared[Rewards]:
    """Open the model of `spec` as a reward model, as `settings` ask; all ranks take part.

    `own_pad_id` is what its configuration is saved with, `pad_id` what rows are padded with. A head that is new is
    drawn from torch's random state, which the ranks must share.
    """
    opened, new = load_reward_model(spec, device=ranks.device, dtype=torch.float32)
    if new and ranks.rank == 0:
        print(f"{spec.source} has no reward head: a new one is drawn from the seed", file=sys.stderr)
    opened = _made_trainable(opened, spec, settings, "SEQ_CLS").train()
    causal_lm(opened).config.get_text_config().pad_token_id = own_pad_id
    _apply(settings, opened)
    return _placed(Rewards(opened, pad_id), False, pad_id, settings, ranks)


def prepare_choices(
    spec: ModelSpec, settings: Training, ranks: Ranks, pad_id: int, with_text: bool
) -> Prepared[HeadChoices]:
    """Open the head that `spec` decodes with, to be trained in float32, on its language model, which is not.

    Raises:
        InputError: `spec` has no head, or `settings` are for what is not trained here.
    """
    if not isinstance(spec.decoding, Adaptive):
        raise InputError(f"{spec.source} has no adaptive head to train: give its spec decoding=Adaptive(head=DIR)")
    if settings.lora or settings.strategy == "fsdp2":
        asked = "lora" if settings.lora else "strategy=fsdp2"
        raise InputError(f"{asked} is for language models, and only a small head is trained here: leave it out")
    base = load_model(spec, device=ranks.device, dtype=torch.float32)
    base = (base.merge_and_unload() if spec.adapter else base).eval().requires_grad_(False)
    mode, reason = choose_mode(base)
    if reason and ranks.rank == 0:
        print(reason, file=sys.stderr)
    chunked = make_policy(base, mode, settings).chunked
    for parameter in base.parameters():
        parameter.data = parameter.data.to(resolve_precision(settings.precision, ranks.device))
    head = load_head(spec.decoding.head, ranks.device).train()
    policy = HeadChoices(head, base, chunked=chunked, with_text=with_text)
    batcher = Batcher(packed=mode.packed, pad_id=pad_id, device=ranks.device, rank=ranks.rank, world=ranks.world)
    weights = Weights(policy, torch.float32)
    return Prepared(policy=policy, weights=weights, batcher=batcher, tree=mode.packed and settings.tree_rows)


def _placed(policy: Policy, packed: bool, pad_id: int, settings: Training, ranks: Ranks) -> Prepared[Policy]:
    dtype = resolve_precision(settings.precision, ranks.device)
    sharded = settings.strategy == "fsdp2" and ranks.world > 1
    if sharded:
        shard(policy, causal_lm(policy.model)._no_split_modules or (), dtype)
    batcher = Batcher(
        packed=packed, pad_id=pad_id, device=ranks.device, rank=ranks.rank, world=ranks.world, in_step=sharded
    )
    return Prepared(
        policy=policy,
        weights=Weights(policy, torch.float32 if sharded else dtype),
        batcher=batcher,
        tree=packed and settings.tree_rows,
    )


def open_model(spec: ModelSpec, settings: Training, device: torch.device) -> PreTrainedModel:
    """Return the language model of `spec` with float32 weights, ready to be trained.

    With `settings.lora` only an adapter is trained: a new one, or that of `spec` continued. Without, an adapter of
    `spec` is folded into the weights, which are then all trained.
    """
    model = load_model(spec, device=device, dtype=torch.float32)
    return _made_trainable(model, spec, settings, "CAUSAL_LM").train()


def make_policy(model: PreTrainedModel, mode: Mode, settings: Training) -> TargetLogps:
    """Return `model` as a function from batches to target log-probs, computed in `mode`.

    The model's own dropout is switched off, so that an update does not depend on how it is split; an adapter's stays.
    """
    if mode.packed:
        causal_lm(model).set_attn_implementation(NAME)
    _apply(settings, model)
    return TargetLogps(model, chunked=mode.chunked)


def _apply(settings: Training, model: PreTrainedModel) -> None:
    _switch_off_dropout(model)
    if settings.activation_checkpointing:
        # Renamed in transformers 5.2x; the old name is to go in version 6.
        inner = causal_lm(model)
        getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)()
    if settings.compile:
        # Groups of rows change with every batch, so attention stays as it is and what lies between is compiled.
        AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
        causal_lm(model).base_model.compile(dynamic=True)


def _made_trainable(model: PreTrainedModel, spec: ModelSpec, settings: Training, task_type: str) -> PreTrainedModel:
    if settings.lora is None:
        # peft freezes the weights it adapts, and merging leaves them so.
        return _thawed(model.merge_and_unload()) if spec.adapter else model
    if not spec.adapter:
        return _with_adapter(model, settings.lora, task_type)
    for name, parameter in model.named_parameters():
        # What peft saves beside the matrices: a reward model's head, the embeddings of added tokens.
        parameter.requires_grad_(any(part in name for part in ("lora_", ".modules_to_save.", "trainable_tokens_delta")))
    return model


def _thawed(model: PreTrainedModel) -> PreTrainedModel:
    """Return `model`, all frozen, with those weights to be trained that a new model of its class would train."""
    with torch.device("meta"):
        new = dict(type(model)._from_config(model.config).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(new[name].requires_grad)
    return model


def _with_adapter(model: PreTrainedModel, lora: Lora, task_type: str) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    # A part that is not trained with the weights gets no adapter either.
    frozen = [name.removesuffix(".weight") for name, p in model.named_parameters() if not p.requires_grad]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=frozen or None,
        task_type=task_type,
        trainable_token_indices=_added_tokens(model),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"no adapter fits lora.targets={list(lora.targets)}: {str(error).splitlines()[0]}") from None


def _added_tokens(model: PreTrainedModel) -> dict[str, list[int]] | None:
    """Return the added tokens by embedding layer, in and out: untrained ones mean nothing. peft knows of tied ones."""
    added = list(getattr(model.config, TRAINED_WITH_ADAPTERS, ()))
    tied = model.get_input_embeddings().weight is getattr(model.get_output_embeddings(), "weight", None)
    tables = (model.get_input_embeddings(),) if tied else (model.get_input_embeddings(), model.get_output_embeddings())
    modules = dict(model.named_modules())
    paths = [path for path, module in modules.items() if any(module is t for t in tables)]
    return dict.fromkeys((_ending(path, modules) for path in paths), added) if added else None


def _ending(path: str, paths: Iterable[str]) -> str:
    """Return the shortest end of a module's path that no other path has: peft adapts all modules whose path has it."""
    parts, others = path.split("."), [p for p in paths if p != path]
    for n in range(1, len(parts) + 1):
        end = ".".join(parts[-n:])
        if not any(other.endswith(end) for other in others):
            return end
    also = next(other for other in others if other.endswith(path))
    raise InputError(
        f"lora: peft cannot train added tokens in {path} and not in {also}: train all weights, without lora"
    )


def _switch_off_dropout(model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_" not in name:
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
