"""Byte Latent Transformer: importing this makes transformers' Auto classes open its models and tokenizer."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from selftaught.models.blt.configuration import BltConfig, ByteNgramsConfig, byte_transformer_config
from selftaught.models.blt.modeling import BltForCausalLM, BltModel, BltOutput
from selftaught.models.blt.ngram_entropy import ByteNgrams, count_ngrams
from selftaught.models.blt.tokenization import ByteTokenizer

__all__ = [
    "BltConfig",
    "BltForCausalLM",
    "BltModel",
    "BltOutput",
    "ByteNgrams",
    "ByteNgramsConfig",
    "ByteTokenizer",
    "byte_transformer_config",
    "count_ngrams",
]

AutoConfig.register(BltConfig.model_type, BltConfig, exist_ok=True)
AutoConfig.register(ByteNgramsConfig.model_type, ByteNgramsConfig, exist_ok=True)
AutoModel.register(BltConfig, BltModel, exist_ok=True)
AutoModel.register(ByteNgramsConfig, ByteNgrams, exist_ok=True)
AutoModelForCausalLM.register(BltConfig, BltForCausalLM, exist_ok=True)
AutoTokenizer.register(BltConfig, slow_tokenizer_class=ByteTokenizer, exist_ok=True)
