"""Processor of QwenOFT: the state is text in the prompt, and so is a placeholder for each action."""

from ...processing.processing_vla import VLAProcessor
from ...processing.prompt import ACTION_PLACEHOLDER, add_action_placeholders, add_state, apply_template
from .configuration_qwen_oft import QwenOFTConfig


class QwenOFTProcessor(VLAProcessor):
    """Processor of [`QwenOFTForActionPrediction`].

    The text is the instruction, the state's 256 bins, `action_horizon` action placeholders, and around all that the prompt
    template. `action_horizon` must be set.
    """

    config_class = QwenOFTConfig

    def _prompt(self, instruction, state):
        if self.action_horizon is None:
            raise ValueError(
                "this processor's action_horizon is not set; it is the number of placeholders in the prompt"
            )
        text = instruction if state is None else add_state(instruction, state)
        return apply_template(self.prompt_template, add_action_placeholders(text, self.action_horizon))

    @classmethod
    def config_fields(cls, tokenizer) -> dict:
        """The first token id of the placeholder: StarVLA finds the action positions by it."""
        return {"action_token_id": tokenizer(ACTION_PLACEHOLDER, add_special_tokens=False)["input_ids"][0]}


__all__ = ["QwenOFTProcessor"]
