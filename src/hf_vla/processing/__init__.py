"""Processors: numpy, PIL, tokenizers. Never a model."""

# Loaded first, so that registering our processors with AutoProcessor does not find one of them half imported.
import transformers.models.auto.processing_auto  # noqa: F401
