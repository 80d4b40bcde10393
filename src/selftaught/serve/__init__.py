"""An OpenAI-compatible server over the sampler; see docs/serve.md."""
