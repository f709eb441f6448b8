"""What the models of all frameworks share: loading that raises instead of loading half, weight initialisation, outputs."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers import initialization as init
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, logging

from ..cards.model_card import LeavesModelCard
from ..checkpoints.strict_loading import align, no_loading_report, raise_if_incomplete, raise_if_shapes_differ
from ..checkpoints.zero3 import not_partitioned, writes_weights
from ..hub import HUB_KWARGS, hub_options
from .backbone import layer_states
from .configuration_vla import VLAConfig
from .losses import labelled, language_model_loss

logger = logging.get_logger(__name__)


@dataclass
class VLAOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*):
            The action loss or the language-model loss; in co-training their sum.
        action_loss (`torch.Tensor`, *optional*):
            The framework's loss on the actions.
        vlm_loss (`torch.Tensor`, *optional*):
            The backbone's language-model loss.
    """

    loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    vlm_loss: torch.Tensor | None = None


class VLAPreTrainedModel(LeavesModelCard, PreTrainedModel):
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

    def post_init(self) -> None:
        """As transformers', and `_no_split_modules` are the transformer blocks of backbone and head, whatever their names.

        They are FSDP's units, and are not torn apart by a `device_map`. transformers' own list for a backbone may lack some,
        and names others that are not in the model, at which accelerate's FSDP stops.
        """
        super().post_init()
        present = {type(module).__name__ for module in self.modules()}
        blocks = {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}
        self._no_split_modules = (set(self._no_split_modules) & present) | blocks

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

    @property
    def encoders(self) -> list[nn.Module]:
        """The modules that are called on the observation, before the action head is."""
        return [self.vlm.model]

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """As transformers', of backbone and head, without reentrant checkpoints unless `use_reentrant` is set.

        transformers also makes the embeddings require gradients, which only reentrant checkpoints need: activations of a
        frozen backbone would be kept, and a backward pass run through it, for nothing.
        """
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        super().activation_checkpointing_enable(options, **kwargs)
        if not options["use_reentrant"]:
            self.disable_input_require_grads()

    def backbone_states(self, input_ids, attention_mask, **vlm_inputs) -> list[torch.Tensor]:
        """h[0] … h[N] of the backbone's N decoder layers, (B, L, hidden_size) each, in the convention of the config."""
        convention = self.config.hidden_states_convention
        return layer_states(self.vlm, convention, input_ids=input_ids, attention_mask=attention_mask, **vlm_inputs)

    def language_model_output(self, labels, actions, input_ids, attention_mask, **vlm_inputs) -> VLAOutput:
        """The backbone's language-model loss on image-text samples, for co-training."""
        if actions is not None:
            raise ValueError(
                "a batch has either `actions` or `labels`; give robot samples and image-text samples in batches of their own"
            )
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **vlm_inputs}
        loss = language_model_loss(self.vlm, labels, **inputs)
        return VLAOutput(loss=loss, vlm_loss=loss)

    def with_language_model_loss(self, output: VLAOutput, vlm_batch: Mapping[str, torch.Tensor] | None) -> VLAOutput:
        """A batch's `output`, and the language-model loss of the image-text samples that come with it, if any.

        Both are computed by one call of `forward`, and so by one backward pass, as DDP, FSDP and ZeRO need it.
        """
        if vlm_batch is None:
            return output
        if vlm_batch.get("labels") is None:
            raise ValueError(
                f"vlm_batch has no `labels`, only {', '.join(vlm_batch)}; make it with processor.encode_conversations"
            )
        vlm_loss = self.language_model_output(actions=None, **vlm_batch).vlm_loss
        return replace(output, loss=output.loss + vlm_loss, vlm_loss=vlm_loss)

    def loss_counts(self, batch: Mapping) -> dict[str, int | torch.Tensor]:
        """Over how many targets `forward` takes the mean in each loss of a batch: action steps, labelled tokens.

        Losses of several batches are averaged by these, so that every target counts the same; see
        [`~hf_vla.training.losses`]. Override it where a framework's action loss is another mean.
        """
        counts = {}
        vlm_batch = batch.get("vlm_batch") or ({} if "actions" in batch else batch)
        if vlm_batch.get("labels") is not None:
            counts["vlm_loss"] = labelled(vlm_batch["labels"]).sum()
        if batch.get("actions") is not None:
            horizon, mask = self.config.action_horizon, batch.get("action_mask")
            counts["action_loss"] = len(batch["actions"]) * horizon if mask is None else mask[:, -horizon:].sum()
        return counts

    def target_actions(
        self, batch: int, actions: torch.Tensor | None, action_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The last `action_horizon` of the given steps, (B, T, action_dim) and mask (B, T), as StarVLA trains on them."""
        horizon, dim = self.config.action_horizon, self.config.action_dim
        if actions is None:
            raise ValueError(
                "forward computes a loss and needs `actions` (B, T, action_dim), or `labels` (B, L) for the language-model "
                "loss of the backbone; to predict, call predict_action"
            )
        if actions.ndim != 3 or len(actions) != batch or actions.shape[1] < horizon or actions.shape[2] != dim:
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; {batch} prompts of this policy need ({batch}, T, {dim}) with "
                f"T >= {horizon}"
            )
        if action_mask is not None and action_mask.shape != actions.shape[:2]:
            raise ValueError(
                f"action_mask has shape {tuple(action_mask.shape)}; actions need {tuple(actions.shape[:2])}"
            )
        return actions[:, -horizon:], None if action_mask is None else action_mask[:, -horizon:]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a policy from a folder or Hub repository, in this format or in StarVLA's native one, or an adapter of one.

        Args:
            pretrained_model_name_or_path: folder or repository.
            base_model: for adapters, where the policy or backbone is that they adapt, if not where it was.
            base_vlm: for native checkpoints, the folder or repository of the backbone's config and processor.
            checkpoint: for native checkpoints, which file to load; by default the one of the highest step.
            kwargs: as for `PreTrainedModel.from_pretrained` (`dtype`, `device_map`, `attn_implementation`, …). A
                `quantization_config` is applied to the backbone only.

        Raises:
            ValueError: the weights lack tensors of the model, hold others, or hold some of another shape; an adapter's base
                is another one than it was trained on.
            OSError: no such folder or repository, no weights in it, or weights that cannot be read.
        """
        from ..checkpoints import starvla
        from ..checkpoints.adapters import find_adapter
        from ..checkpoints.quantization import of_backbone_only
        from ..checkpoints.weights import readable_weights

        wants_info = kwargs.pop("output_loading_info", False)
        if (adapter := find_adapter(pretrained_model_name_or_path, **kwargs)) is not None:
            model = adapter.load(cls, config, **kwargs)
            info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
            return (model, info) if wants_info else model
        if kwargs.pop("base_model", None) is not None:
            raise ValueError(f"{pretrained_model_name_or_path} is no adapter, so there is no base_model; leave it out")
        native_kwargs = starvla.pop_native_kwargs(kwargs)
        repository = None
        if pretrained_model_name_or_path is not None:
            repository = starvla.find_repository(pretrained_model_name_or_path, **kwargs)
        if repository is not None:
            if config is None:
                config, kwargs = repository.config(
                    cls.config_class, return_unused_kwargs=True, **native_kwargs, **kwargs
                )
            else:
                kwargs = {name: value for name, value in kwargs.items() if name not in HUB_KWARGS}
            kwargs["state_dict"] = repository.state_dict(native_kwargs.get("checkpoint"))
            pretrained_model_name_or_path, source = None, repository.name
            raise_if_shapes_differ(source, cls, config, kwargs["state_dict"])
        else:
            starvla.refuse_native_kwargs(native_kwargs, pretrained_model_name_or_path)
            source = pretrained_model_name_or_path
        if kwargs.get("quantization_config") is not None:
            own = config or cls.config_class.from_pretrained(pretrained_model_name_or_path, **hub_options(kwargs))
            kwargs["quantization_config"] = of_backbone_only(kwargs["quantization_config"], cls, own)
        kwargs["ignore_mismatched_sizes"] = True  # to name them below, with all else that does not fit
        with readable_weights(source):
            if is_deepspeed_zero3_enabled():  # transformers only finds what is missing then
                with not_partitioned():
                    meta = {**kwargs, "device_map": "meta"}
                    _, info = super().from_pretrained(
                        pretrained_model_name_or_path,
                        *model_args,
                        config=copy.deepcopy(config),
                        output_loading_info=True,
                        **meta,
                    )
                raise_if_incomplete(source, info)
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
            )
        raise_if_incomplete(source, info)
        if is_deepspeed_zero3_enabled():
            # transformers 5.23 notes all conversions of names that it knows as used, and undoes them when it saves.
            model._weight_conversions = None
        align(model)
        if repository is not None:
            model.config._name_or_path = model.name_or_path = repository.name
        return (model, info) if wants_info else model

    @classmethod
    def from_vlm(
        cls,
        vlm_name_or_path,
        *,
        random_init: bool = False,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        device_map=None,
        quantization_config=None,
        **kwargs,
    ) -> tuple["VLAPreTrainedModel", ProcessorMixin]:
        """A new policy and its processor from a vision-language model: pretrained backbone, new head.

        ```python
        >>> from hf_vla import QwenOFTForActionPrediction

        >>> policy, processor = QwenOFTForActionPrediction.from_vlm(
        ...     "Qwen/Qwen3-VL-4B-Instruct", action_dim=7, action_horizon=8, image_size=[224, 224]
        ... )  # doctest: +SKIP
        ```

        Args:
            vlm_name_or_path: folder or Hub repository of the backbone.
            random_init: give the backbone new weights too, so that none are needed.
            dtype: of the policy; "auto" is that of the backbone's weights, or torch's default where there are none.
            attn_implementation, device_map, quantization_config: as for `from_pretrained`.
            kwargs: fields of the policy's configuration (`action_dim`, `action_horizon`, …), settings of its processor
                (`statistics`, `normalization_modes`, `image_size`, `prompt_template`, …), Hub options (`revision`, …), and
                `image_processor_config`, a dict of fields of the backbone's image processor to change, for example
                {"do_image_splitting": False} for one frame an image with SmolVLM2.

        Returns:
            The policy, in evaluation mode, and the processor.

        Raises:
            ValueError: unknown arguments, or backbone weights that don't fit its configuration.
            OSError: no such folder or repository, or no weights in it.
        """
        from ..processing.from_vlm import build_from_vlm

        config, processor, hub = build_from_vlm(cls.config_class.model_type, vlm_name_or_path, **kwargs)
        if random_init:
            dtype = torch.get_default_dtype() if dtype == "auto" else dtype
            policy = cls._from_config(config, dtype=dtype, attn_implementation=attn_implementation)
            return policy.eval(), processor
        try:
            policy = cls.on_backbone(
                vlm_name_or_path,
                config,
                dtype,
                attn_implementation=attn_implementation,
                device_map=device_map,
                quantization_config=quantization_config,
                **hub,
            )
        except OSError as error:
            raise OSError(f"{error}; pass random_init=True to start from new ones") from error
        return policy, processor

    @classmethod
    def on_backbone(
        cls, vlm_name_or_path, config, dtype: str | torch.dtype = "auto", **kwargs
    ) -> "VLAPreTrainedModel":
        """A new policy of that configuration on a pretrained backbone; all but the backbone has new weights.

        Args:
            vlm_name_or_path, dtype: as for `from_vlm`.
            kwargs: Hub options, and what `from_pretrained` takes.
        """
        from ..checkpoints.quantization import of_backbone_only

        hub = hub_options(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in hub}
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = of_backbone_only(kwargs["quantization_config"], cls, config)
        try:
            where = {} if writes_weights() else {"device_map": "meta"}
            with not_partitioned():
                vlm, info = AutoModelForImageTextToText.from_pretrained(
                    vlm_name_or_path, dtype=dtype, output_loading_info=True, **hub, **where
                )
        except OSError as error:
            raise OSError(f"the weights of the backbone {vlm_name_or_path} can't be loaded ({error})") from error
        raise_if_incomplete(vlm_name_or_path, {**info, "unexpected_keys": ()})  # other heads may lie beside it
        vocab_size = config.vlm_config.get_text_config().vocab_size
        if vocab_size > vlm.get_input_embeddings().num_embeddings:  # the tokenizer was given new tokens
            vlm.resize_token_embeddings(vocab_size)
        with no_loading_report():
            return super().from_pretrained(
                None,
                config=config,
                state_dict={f"vlm.{name}": tensor for name, tensor in vlm.state_dict().items()},
                dtype=vlm.dtype,
                **kwargs,
            )

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers', which of a policy with an adapter writes the adapter; with what finds its base again."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if getattr(self, "_hf_peft_config_loaded", False) and kwargs.get("is_main_process", True):
            from ..checkpoints.adapters import describe_base

            describe_base(save_directory, self, getattr(self, "base_fingerprint", None))


__all__ = ["VLAOutput", "VLAPreTrainedModel"]
