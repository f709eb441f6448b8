"""What the models of all frameworks share: loading that raises instead of loading half, weight initialisation, outputs."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .configuration_vla import VLAConfig

logger = logging.get_logger(__name__)


@dataclass
class VLAOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*):
            The action loss plus, where there is one, the weighted language-model loss.
        action_loss (`torch.Tensor`, *optional*):
            The framework's loss on the actions.
        vlm_loss (`torch.Tensor`, *optional*):
            The backbone's language-model loss.
    """

    loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    vlm_loss: torch.Tensor | None = None


class VLAPreTrainedModel(PreTrainedModel):
    """Base of every policy: a `PreTrainedModel` with a backbone `vlm`, a `forward` with a loss, and `predict_action`."""

    config_class = VLAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["DiffusionTransformerBlock"]

    def _init_weights(self, module: nn.Module) -> None:
        """New heads start as StarVLA's: torch's defaults for linear and norm layers, normal(0, 0.02) for embeddings."""
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_features)
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.vlm.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.vlm.get_decoder()

    def target_actions(
        self, actions: torch.Tensor | None, action_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The last `action_horizon` of the given steps, (B, T, action_dim) and mask (B, T), as StarVLA trains on them."""
        horizon, dim = self.config.action_horizon, self.config.action_dim
        if actions is None:
            raise ValueError(
                "forward computes a loss and needs `actions` (B, T, action_dim); to predict, call predict_action"
            )
        if actions.ndim != 3 or actions.shape[1] < horizon or actions.shape[2] != dim:
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; this policy needs (B, T, {dim}) with T >= {horizon}"
            )
        if action_mask is not None and action_mask.shape != actions.shape[:2]:
            raise ValueError(
                f"action_mask has shape {tuple(action_mask.shape)}; actions need {tuple(actions.shape[:2])}"
            )
        return actions[:, -horizon:], None if action_mask is None else action_mask[:, -horizon:]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a policy from a folder or Hub repository, in this format or in StarVLA's native one.

        Args:
            pretrained_model_name_or_path: folder or repository.
            base_vlm: for native checkpoints, the folder or repository of the backbone's config and processor.
            checkpoint: for native checkpoints, which file to load; by default the one of the highest step.
            kwargs: as for `PreTrainedModel.from_pretrained` (`dtype`, `device_map`, `attn_implementation`, …).

        Raises:
            ValueError: the weights lack tensors of the model, hold others, or hold some of another shape.
            OSError: no such folder or repository, no weights in it, or weights that cannot be read.
        """
        from ..checkpoints import starvla

        native_kwargs = starvla.pop_native_kwargs(kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        repository = None
        if pretrained_model_name_or_path is not None:
            repository = starvla.find_repository(pretrained_model_name_or_path, **kwargs)
        if repository is not None:
            if config is None:
                config, kwargs = repository.config(
                    cls.config_class, return_unused_kwargs=True, **native_kwargs, **kwargs
                )
            else:
                kwargs = {name: value for name, value in kwargs.items() if name not in starvla.HUB_KWARGS}
            kwargs["state_dict"] = repository.state_dict(native_kwargs.get("checkpoint"))
            pretrained_model_name_or_path, source = None, repository.name
        else:
            starvla.refuse_native_kwargs(native_kwargs, pretrained_model_name_or_path)
            source = pretrained_model_name_or_path
        with starvla.readable_weights(source):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
            )
        _raise_if_incomplete(source, info)
        if repository is not None:
            model.config._name_or_path = model.name_or_path = repository.name
        return (model, info) if wants_info else model


def _raise_if_incomplete(source, info: dict) -> None:
    """Raise a ValueError that names what the weights lack, hold too much, or hold in another shape."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(map(str, info.get(kind, ())))
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}: {shown}")
    if problems:
        raise ValueError(
            f"the weights of {source} do not fit this model ({'; '.join(problems)}). Load them with the configuration "
            "they were trained with, or check that the checkpoint is complete"
        )


__all__ = ["VLAOutput", "VLAPreTrainedModel"]
