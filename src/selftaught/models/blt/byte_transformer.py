"""A transformer over bytes, for next-byte entropies and as a model to compare with."""

from transformers import MistralForCausalLM

from selftaught.models.blt.configuration import ByteTransformerConfig


class ByteTransformer(MistralForCausalLM):
    """A Mistral over bytes."""

    config_class = ByteTransformerConfig
