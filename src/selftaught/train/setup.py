"""A model made ready for training: adapter, dropout off, checkpointing, the mode the probe allows."""

import torch
from transformers import PreTrainedModel

from selftaught.errors import InputError
from selftaught.models.load import load_model
from selftaught.specs import Lora, ModelSpec, Training
from selftaught.train.attention import NAME
from selftaught.train.forward import TargetLogps
from selftaught.train.probe import Mode


def open_model(spec: ModelSpec, settings: Training, device: torch.device) -> PreTrainedModel:
    """Return the model of `spec` with float32 weights, ready to be trained.

    With `settings.lora` only an adapter is trained: a new one, or that of `spec` continued. Without, an adapter of
    `spec` is folded into the weights, which are then all trained.
    """
    model = load_model(spec, device=device, dtype=torch.float32)
    if settings.lora is None:
        model = model.merge_and_unload() if spec.adapter else model
    elif spec.adapter:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    else:
        model = _with_adapter(model, settings.lora)
    model.train()
    _switch_off_dropout(model)
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def make_policy(model: PreTrainedModel, mode: Mode, settings: Training) -> TargetLogps:
    """Return `model` as a function from batches to target log-probs, computed in `mode`."""
    if mode.packed:
        causal_lm(model).set_attn_implementation(NAME)
    if settings.compile:
        causal_lm(model).base_model.compile(dynamic=True)
    return TargetLogps(model, chunked=mode.chunked)


def causal_lm(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformers model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


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
    """Set the model's own dropout to 0, so that an update does not depend on how it is split; an adapter's stays."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_" not in name:
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
