"""A policy with a trainable adapter: PEFT's model, whose folders the Auto classes load as policies."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper

from ..cards.model_card import LeavesModelCard
from ..checkpoints.adapted_modules import fingerprint, tied_embeddings_shown
from ..checkpoints.adapters import describe_base, find_adapter
from .checkpointing import SAVING

#: What must be the same in a checkpoint that a run goes on from; what is adapted shows in the names of its tensors.
_SAME = ("r", "lora_alpha", "use_rslora", "use_dora", "trainable_token_indices")


class AdaptedPolicy(LeavesModelCard, PeftModel):
    """`PeftModel` of a policy. What is trained is float32, whatever the frozen weights are.

    Args:
        model: the policy; it is changed in place.
        peft_config: the adapter, with `base_model_name_or_path`.
    """

    def __init__(self, model: torch.nn.Module, peft_config: LoraConfig):
        base_fingerprint = {name: values.tolist() for name, values in fingerprint(model).items()}
        with tied_embeddings_shown(model):
            super().__init__(model, peft_config)
        self.base_fingerprint = base_fingerprint
        for module in model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                for parameter in module.parameters():
                    if parameter.requires_grad:
                        parameter.data = parameter.data.float()

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """Write the adapter, the policy's configuration, and how to recognise the base."""
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, **{"save_embedding_layers": False, **kwargs}
        )
        if is_main_process:
            final = Path(*(part for part in Path(save_directory).absolute().parts if part != SAVING))
            describe_base(save_directory, self, self.base_fingerprint, final)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """PEFT's; the policy's own card takes its place."""

    def load_adapter(self, model_id, adapter_name: str = "default", is_trainable: bool = False, **kwargs):
        """Go on from a checkpoint, as the Trainer does when it resumes.

        Raises:
            ValueError: the checkpoint is of another adapter or base, or does not hold all of it.
        """
        if adapter_name not in self.peft_config:
            return super().load_adapter(model_id, adapter_name, is_trainable=is_trainable, **kwargs)
        adapter = find_adapter(model_id)
        if adapter is None:
            raise ValueError(f"{model_id} holds no adapter; resume from a checkpoint of a run with use_peft")
        saved, own = adapter.settings(), self.peft_config[adapter_name]
        for name in _SAME:
            if saved.get(name) != getattr(own, name):
                raise ValueError(
                    f"{model_id} was trained with {name} {saved.get(name)!r:.80}, this run has {getattr(own, name)!r:.80}; "
                    "resume with the settings of that run (its config.yaml), or start a new one"
                )
        adapter.check_base(self, "the base of this run")
        adapter.load_weights(self)
        return torch.nn.modules.module._IncompatibleKeys([], [])


__all__ = ["AdaptedPolicy"]
