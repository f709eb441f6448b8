"""Loading and saving of policies: strict, in this package's format or StarVLA's, adapters, new policies on a backbone."""

import copy

import torch
from transformers import AutoModelForImageTextToText, ProcessorMixin
from transformers.integrations import is_deepspeed_zero3_enabled

from ..checkpoints.adapters import describe_base
from ..checkpoints.opening import find_checkpoint, open_with
from ..checkpoints.quantization import check_saveable, of_backbone_only, quantization_argument
from ..checkpoints.starvla import NATIVE_KWARGS
from ..checkpoints.strict_loading import align, no_loading_report, raise_if_incomplete, raise_if_shapes_differ
from ..checkpoints.unusable_files import unusable_files_named
from ..checkpoints.weights import readable_weights
from ..checkpoints.zero3 import not_partitioned, writes_weights
from ..hub import HUB_KWARGS, hub_options
from ..processing.from_vlm import build_from_vlm
from ..registry import frameworks
from ..transformers_internals import forget_weight_conversions, has_adapter


class PolicyLoading:
    """Mixin of policies: `from_pretrained`, `from_vlm` and `save_pretrained`, on top of transformers'."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a policy from a folder or Hub repository, in this format or in StarVLA's native one, or an adapter of one.

        Args:
            pretrained_model_name_or_path: folder or repository, or a checkpoint that is open already
                ([`~hf_vla.checkpoints.open_checkpoint`]).
            base_model: for adapters, where the policy or backbone is that they adapt, if not where it was.
            base_vlm: for native checkpoints, the folder or repository of the backbone's config and processor.
            checkpoint: for native checkpoints, which file to load; by default the one of the highest step.
            kwargs: as for `PreTrainedModel.from_pretrained` (`dtype`, `device_map`, `attn_implementation`, …). A
                `quantization_config` is applied to the backbone only. `quantization`, in its place, is a name of
                [`~hf_vla.checkpoints.quantization.QUANTIZATIONS`].

        Raises:
            ValueError: the weights lack tensors of the model, hold others, or hold some of another shape; an adapter's base
                is another one than it was trained on.
            OSError: no such folder or repository, no weights in it, or weights that cannot be read.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs = quantization_argument(kwargs)
        # transformers' AutoModel may have gone on from an adapter to its base.
        source = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path") or pretrained_model_name_or_path
        if source is None:  # transformers' way to give a configuration and a state dict
            model, info = cls._load_whole("state_dict", None, *model_args, config=config, **kwargs)
            return (model, info) if wants_info else model
        checkpoint, kwargs = open_with(source, kwargs)
        base_model = kwargs.pop("base_model", None)
        if checkpoint.is_adapter:
            model = checkpoint.load(cls, config, base_model, **kwargs)
            info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        elif base_model is not None:
            raise ValueError(f"{checkpoint.name} is no adapter, so there is no base_model; leave it out")
        elif checkpoint.is_native:
            if config is None:
                config, kwargs = checkpoint.config(cls.config_class, return_unused_kwargs=True, **kwargs)
            kwargs["state_dict"] = checkpoint.state_dict()
            raise_if_shapes_differ(checkpoint.name, cls, config, kwargs["state_dict"])
            model, info = cls._load_whole(checkpoint.name, None, *model_args, config=config, **kwargs)
            model.config.name_or_path = model.name_or_path = checkpoint.name
        else:
            if kwargs.get("quantization_config") is not None and config is None:
                config = cls.config_class.from_pretrained(checkpoint)
            kwargs |= checkpoint.files.hub
            with unusable_files_named(checkpoint):
                model, info = cls._load_whole(checkpoint.name, checkpoint.name, *model_args, config=config, **kwargs)
        return (model, info) if wants_info else model

    @classmethod
    def _load_whole(cls, source: str, name_or_path, *model_args, config, **kwargs) -> tuple["PolicyLoading", dict]:
        """Load as transformers does, or raise if not all weights fit.

        Args:
            source: what to call the weights in errors.
            name_or_path: where transformers finds them; None if they are in `kwargs["state_dict"]`.
        """
        if kwargs.get("quantization_config") is not None:
            where = {name: kwargs.get(name) for name in ("dtype", "device_map")}
            kwargs["quantization_config"] = of_backbone_only(kwargs["quantization_config"], cls, config, **where)
        kwargs["ignore_mismatched_sizes"] = True  # to name them below, with all else that does not fit
        with readable_weights(source):
            if is_deepspeed_zero3_enabled():  # transformers only finds what is missing then
                with not_partitioned():
                    options = {**kwargs, "device_map": "meta", "output_loading_info": True}
                    own_config = copy.deepcopy(config)
                    _, info = super().from_pretrained(name_or_path, *model_args, config=own_config, **options)
                raise_if_incomplete(source, info)
            model, info = super().from_pretrained(
                name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
            )
        raise_if_incomplete(source, info)
        if is_deepspeed_zero3_enabled():
            forget_weight_conversions(model)
        align(model)
        return model, info

    @classmethod
    def from_policy_or_backbone(cls, name_or_path, config=None, **kwargs) -> tuple["PolicyLoading", bool]:
        """Load what an adapter adapts: a policy, or a new policy on a pretrained backbone; and whether it was a policy.

        Args:
            name_or_path: folder or repository.
            config, kwargs: as for `from_pretrained`.
        """
        checkpoint = find_checkpoint(name_or_path, **hub_options(kwargs, (*HUB_KWARGS, *NATIVE_KWARGS)))
        if checkpoint is not None and checkpoint.model_type in frameworks():
            return cls.from_pretrained(checkpoint, config=config, **kwargs), True
        return cls.on_backbone(name_or_path, config=config, **kwargs), False

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
    ) -> tuple["PolicyLoading", ProcessorMixin]:
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
    def on_backbone(cls, vlm_name_or_path, config, dtype: str | torch.dtype = "auto", **kwargs) -> "PolicyLoading":
        """A new policy of that configuration on a pretrained backbone; all but the backbone has new weights.

        Args:
            vlm_name_or_path, dtype: as for `from_vlm`.
            kwargs: Hub options, and what `from_pretrained` takes.
        """
        hub = hub_options(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in hub}
        if kwargs.get("quantization_config") is not None:
            where = (dtype, kwargs.get("device_map"))
            kwargs["quantization_config"] = of_backbone_only(kwargs["quantization_config"], cls, config, *where)
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
        """As transformers', which of a policy with an adapter writes the adapter; with what finds its base again.

        Raises:
            ValueError: the backbone's weights are in 4 bits on a CPU, in an order that is not read again.
        """
        if not has_adapter(self):
            check_saveable(self)
        super().save_pretrained(save_directory, *args, **kwargs)
        if has_adapter(self) and kwargs.get("is_main_process", True):
            describe_base(save_directory, self, getattr(self, "base_fingerprint", None))


__all__ = ["PolicyLoading"]
