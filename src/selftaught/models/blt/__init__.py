"""Byte Latent Transformer: importing this makes transformers' Auto classes open its models and tokenizer."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from selftaught.models.blt.byte_transformer import ByteTransformer
from selftaught.models.blt.classification import BltForSequenceClassification
from selftaught.models.blt.configuration import (
    BltConfig,
    ByteNgramsConfig,
    ByteTransformerConfig,
    byte_transformer_config,
)
from selftaught.models.blt.modeling import BltForCausalLM, BltModel, BltOutput
from selftaught.models.blt.ngram_entropy import ByteNgrams, count_ngrams
from selftaught.models.blt.tokenization import ByteTokenizer

__all__ = [
    "BltConfig",
    "BltForCausalLM",
    "BltForSequenceClassification",
    "BltModel",
    "BltOutput",
    "ByteNgrams",
    "ByteNgramsConfig",
    "ByteTokenizer",
    "ByteTransformer",
    "ByteTransformerConfig",
    "byte_transformer_config",
    "count_ngrams",
]

AutoConfig.register(BltConfig.model_type, BltConfig, exist_ok=True)
AutoConfig.register(ByteNgramsConfig.model_type, ByteNgramsConfig, exist_ok=True)
AutoConfig.register(ByteTransformerConfig.model_type, ByteTransformerConfig, exist_ok=True)
AutoModel.register(BltConfig, BltModel, exist_ok=True)
AutoModel.register(ByteNgramsConfig, ByteNgrams, exist_ok=True)
AutoModelForCausalLM.register(BltConfig, BltForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(ByteTransformerConfig, ByteTransformer, exist_ok=True)
AutoModelForSequenceClassification.register(BltConfig, BltForSequenceClassification, exist_ok=True)
AutoTokenizer.register(BltConfig, slow_tokenizer_class=ByteTokenizer, exist_ok=True)
AutoTokenizer.register(ByteTransformerConfig, slow_tokenizer_class=ByteTokenizer, exist_ok=True)
