"""Models and their configurations. torch only: never a tokenizer, never a statistic."""

# Loaded first, so that registering our models with AutoModel does not find one of them half imported.
import transformers.models.auto.modeling_auto  # noqa: F401
