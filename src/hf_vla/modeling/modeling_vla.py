"""Base class of all policies: the public `forward` and `predict_action`, initial weights; loading is in `loading.py`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, logging

from ..cards.model_card import LeavesModelCard
from .backbone import layer_states
from .chunk_distributions import ChunkDistribution, Trace
from .compiled_sampling import CompiledSampling
from .configuration_vla import VLAConfig
from .diffusion_transformer import SinusoidalPositions
from .exploration import Exploration
from .loading import PolicyLoading
from .losses import ActionTargets, labelled, language_model_loss
from .placeholders import check_placeholders
from .real_time_chunking import RealTimeChunking
from .sampling import DenoisingStep, PreparedOptions, SamplingOptions

logger = logging.get_logger(__name__)


#: Keys of a training batch that `predict_action` does not read.
_TRAINING_KEYS = ("actions", "action_mask", "sample_weight", "timestep", "vlm_batch")


@dataclass
class VLAOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `()`, *optional*):
            The action loss or the language-model loss; in co-training their sum.
        action_loss (`torch.Tensor` of shape `()`, *optional*):
            The framework's loss on the actions.
        vlm_loss (`torch.Tensor` of shape `()`, *optional*):
            The backbone's language-model loss.
        loss_per_sample (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            The loss of each sample of the batch, without its `sample_weight`; samples of a `vlm_batch` are not in it.
        log_prob (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            The log-probabilities of sampled chunks, of a batch with a `trace`.
    """

    loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    vlm_loss: torch.Tensor | None = None
    loss_per_sample: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None


class VLAPreTrainedModel(ChunkDistribution, PolicyLoading, LeavesModelCard, PreTrainedModel):
    """Base class of every policy. It implements the public `forward` and `predict_action` on top of a framework's own methods.

    A framework implements:

    * `__init__`: build the backbone `self.vlm` with [`~hf_vla.modeling.backbone.build_backbone`] and the modules that turn its
      states into actions, and call `self.post_init()` last;
    * `action_loss`: compute the loss of a batch with actions;
    * `sample_actions`: predict one action chunk per observation.

    The last two are given the observation as keyword arguments, already checked. They name the arguments that they read, and
    pass all others to `self.backbone_states`: these differ between families of backbones (`pixel_values`, `image_grid_thw`, …),
    and a framework need not know them. `state` is among them only if the configuration's `state_input` is "head".
    """

    config_class = VLAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    #: What runs `sample_actions` after `compile_for_inference`.
    compiled_sampling: CompiledSampling | None = None
    #: Fields of [`~hf_vla.modeling.sampling.SamplingOptions`] that `sample_actions` reads.
    sampling_options: frozenset[str] = frozenset()
    #: Inputs other than the state that only the head reads, such as QwenDual's images for DINO.
    head_inputs: tuple[str, ...] = ()
    #: The field of the configuration that says how many placeholders a prompt has, if the framework reads them.
    placeholders: str | None = None
    #: Whether all that the head reads of the backbone are `backbone_states`, so that `known_states` can take their place.
    reads_backbone_states = True
    #: Whether a prediction can be one graph; not if the number of its steps depends on what it predicts (QwenFAST).
    one_graph = True
    #: Whether a batch with actions also holds them as tokens, in `labels` (QwenFAST).
    labels_are_actions = False

    def post_init(self) -> None:
        """Initialise as transformers does, and set `_no_split_modules` to the transformer blocks of backbone and head.

        They are the units of FSDP, and a `device_map` does not split them. transformers' own list for a backbone may lack some,
        and may name others that the model does not have, which accelerate's FSDP refuses.
        """
        super().post_init()
        present = {type(module).__name__ for module in self.modules()}
        blocks = {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}
        self._no_split_modules = (set(self._no_split_modules) & present) | blocks

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise new heads as StarVLA does: torch's defaults for linear and norm layers, normal(0, 0.02) for embeddings."""
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
        elif isinstance(module, SinusoidalPositions):
            init.copy_(module.pe, module.table())

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.vlm.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.vlm.get_decoder()

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Checkpoint the activations of backbone and head, without reentrant checkpoints unless `use_reentrant` is set.

        transformers also makes the embeddings require gradients, which only reentrant checkpoints need. With a frozen backbone
        that would keep its activations and run a backward pass through it for nothing.
        """
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        super().activation_checkpointing_enable(options, **kwargs)
        if not options["use_reentrant"]:
            self.disable_input_require_grads()

    # ------------------------------------------------------ what a framework implements

    def action_loss(
        self, targets: ActionTargets, *, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **inputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss of a batch with actions; implemented by each framework.

        Args:
            targets: the actions. `targets.mean` turns an error per number into the result, and takes care of padding and
                sample weights.
            input_ids, attention_mask: (B, L).
            inputs: the backbone's other inputs, and `state` (B, 1, state_dim) if there is one and the head reads it.

        Returns:
            The loss, a scalar, and the loss of each sample (B,), both float32.
        """
        raise NotImplementedError(f"{type(self).__name__} has no action_loss")

    def sample_actions(
        self, options: SamplingOptions, *, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **inputs
    ) -> torch.Tensor:
        """Predict an action chunk per observation; implemented by each framework. It is called under `torch.no_grad`.

        Args:
            options: how to draw. The class attribute `sampling_options` names the fields that the framework reads.
            input_ids, attention_mask, inputs: as for `action_loss`, and arguments of `predict_action` that only this framework
                has.

        Returns:
            (B, action_horizon, action_dim), normalised.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sample_actions")

    def targets_per_sample(self, batch: Mapping) -> torch.Tensor:
        """Return the number of targets over which the action loss of each sample is a mean (B,): action steps by default."""
        actions, mask, horizon = batch["actions"], batch.get("action_mask"), self.config.action_horizon
        if mask is None:
            return torch.full((len(actions),), horizon, device=actions.device)
        return mask[:, -horizon:].sum(dim=1)

    # ------------------------------------------------------ what all frameworks share

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        state: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        sample_weight: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        vlm_batch: Mapping[str, torch.Tensor] | None = None,
        trace: Trace | None = None,
        exploration: Exploration | None = None,
        **inputs,
    ) -> VLAOutput:
        """Compute the loss of a batch with actions, or the backbone's language-model loss of a batch with labels.

        Reinforcement learning gives a `trace` instead, and gets the log-probabilities of the chunks that were sampled.

        Args:
            input_ids, attention_mask: (B, L).
            state: (B, 1, state_dim), normalised, for frameworks whose head reads it.
            actions: (B, T, action_dim), normalised; the last `action_horizon` steps are the target.
            action_mask: boolean (B, T), false where a step is padding and does not count.
            sample_weight: (B,), 0 or more: the weight of each sample in the loss, which is a weighted mean.
            noise, timestep: fix the draw of frameworks that draw: (R * B, action_horizon, action_dim) and (R * B,), in tiled
                order b0 b1 … b0 b1 …. Other frameworks don't read them.
            labels: (B, L) token ids, -100 where a token does not count; instead of actions, for co-training.
            vlm_batch: a batch of image-text samples with labels, for co-training, whose language-model loss is added. One call
                computes both losses, because DDP, FSDP and ZeRO need one backward pass.
            trace, exploration: as in `chunk_log_prob`, which this calls: DDP, FSDP and ZeRO need `forward`.
            inputs: the backbone's other inputs: `pixel_values`, and whatever else its family has.

        Raises:
            ValueError: a tensor is missing, or has another shape than this policy needs.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        if trace is not None:
            if actions is not None or labels is not None:
                raise ValueError(
                    "a batch has either a `trace` or `actions`; compute both losses by calls of their own"
                )
            return VLAOutput(log_prob=self.chunk_log_prob(state=state, trace=trace, exploration=exploration, **inputs))
        if sample_weight is not None and sample_weight.shape != (len(input_ids),):
            raise ValueError(
                f"sample_weight has shape {tuple(sample_weight.shape)}; {len(input_ids)} samples need ({len(input_ids)},)"
            )
        if labels is not None and not (self.labels_are_actions and actions is not None):
            if actions is not None or vlm_batch is not None:
                raise ValueError(
                    "a batch has either `actions` or `labels`; give robot samples and image-text samples in separate batches, "
                    "the latter as vlm_batch to train on both in one step"
                )
            loss, per_sample = self._language_model_loss(labels, sample_weight, **inputs)
            return VLAOutput(loss=loss, vlm_loss=loss, loss_per_sample=per_sample)
        actions, action_mask = self._last_steps(len(input_ids), actions, action_mask)
        targets = ActionTargets(actions, action_mask, sample_weight, noise, timestep)
        if labels is not None:
            inputs["labels"] = labels
        self.check_prompts(input_ids)
        loss, per_sample = self.action_loss(targets, **inputs, **self._state_input(state, len(input_ids)))
        if vlm_batch is None:
            return VLAOutput(loss=loss, action_loss=loss, loss_per_sample=per_sample)
        if vlm_batch.get("labels") is None:
            raise ValueError(
                f"vlm_batch has no `labels`, only {', '.join(vlm_batch)}; make it with processor.encode_conversations"
            )
        vlm_loss, _ = self._language_model_loss(**vlm_batch)
        return VLAOutput(loss=loss + vlm_loss, action_loss=loss, vlm_loss=vlm_loss, loss_per_sample=per_sample)

    @torch.no_grad()
    def predict_action(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        state: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        real_time_chunking: RealTimeChunking | None = None,
        on_step: Callable[[DenoisingStep], None] | None = None,
        output_attentions: bool = False,
        guidance: float | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Predict one action chunk per sample, or several.

        All policies can be called alike, and with a training batch: frameworks that draw nothing ignore `noise`, `generator` and
        `num_inference_steps`, and no framework reads the actions of a batch.

        Args:
            input_ids, attention_mask, state: as in `forward`.
            noise: (B, action_horizon, action_dim), drawn from `generator` if None. Given (R * B, …) in the tiled order of
                `forward`, R chunks per sample are drawn; the backbone still runs once.
            num_inference_steps: denoising steps, by default the config's.
            real_time_chunking: a previous chunk for the new one to continue, a
                [`~hf_vla.modeling.real_time_chunking.RealTimeChunking`]. Its fields `previous_chunk`, `inference_delay` and
                `max_guidance_weight` can be given instead.
            on_step: called after each denoising step with a [`~hf_vla.modeling.sampling.DenoisingStep`].
            output_attentions: also give `on_step` the action head's attention weights. Flash and SDPA kernels don't return
                them, so the head's attention is computed in plain torch in this call; predictions may differ in rounding.
            guidance: for flow-matching policies and QwenFAST, beta of plain + beta (conditional - plain), of velocities or
                logits of tokens. The inputs then have 2 B rows: the observations by prompts with a condition, and the
                same ones, in the same order, by prompts without.
            inputs: the backbone's other inputs, and arguments that only this framework has.

        Returns:
            float32 tensor (B, action_horizon, action_dim), normalised; (R * B, …), in the order of the noise.

        Raises:
            ValueError: an argument does not fit the policy, or only frameworks that denoise have it.
        """
        if (from_fields := RealTimeChunking.from_arguments(inputs)) is not None and real_time_chunking is not None:
            raise ValueError("give real_time_chunking, or its fields previous_chunk, inference_delay …, but not both")
        options = SamplingOptions(
            noise=noise,
            generator=generator,
            num_inference_steps=num_inference_steps,
            real_time_chunking=real_time_chunking or from_fields,
            on_step=on_step,
            output_attentions=output_attentions,
            guidance=guidance,
        )
        if guidance is not None:
            self.check_guidance()
            if len(input_ids) % 2:
                raise ValueError(
                    f"guidance takes prompts with a condition and as many without; {len(input_ids)} rows are an odd number"
                )
        wanted = ("real_time_chunking", "on_step", "output_attentions")
        if foreign := [name for name in wanted if getattr(options, name) and name not in self.sampling_options]:
            raise ValueError(f"{type(self).__name__} does not denoise its actions; leave out {', '.join(foreign)}")
        inputs = self._checked_observation(input_ids, attention_mask, state, inputs)
        if self.compiled_sampling is not None:
            return self.compiled_sampling(self, options, inputs)
        return self.sample_actions(options, **inputs).float()

    def compile_for_inference(self, backend: str | Callable | None = None) -> None:
        """Make `predict_action` run as one compiled graph: vision tower, language model, action head, all denoising steps.

        The graph of a batch size, of the images' sizes and of a number of denoising steps is compiled at the first call with
        them, which takes minutes for a large policy; [`hf_vla.Policy.compile_for_inference`] makes such calls in advance. Calls
        that can't be one graph run as before, and a warning says why: those with `on_step`, and policies on other backbones
        than Qwen2.5-VL and Qwen3-VL. Attention is torch's SDPA in it.

        Args:
            backend: of `torch.compile`; by default inductor, and CUDA graphs on a GPU. "eager" compiles nothing, for tests.
        """
        self.compiled_sampling = CompiledSampling(backend)

    def prepared_options(self, options: SamplingOptions, batch: int) -> PreparedOptions:
        """Do for `sample_actions` what a graph can't: draw noise, check numbers. A framework that draws overrides it."""
        return PreparedOptions(**vars(options) | {"noise": None, "generator": None})

    def _checked_observation(self, input_ids, attention_mask, state, inputs: dict) -> dict:
        """Check an observation, and return the keyword arguments of `sample_actions`, without what only training reads."""
        inputs = {name: value for name, value in inputs.items() if name not in _TRAINING_KEYS}
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= self._state_input(state, len(input_ids))
        self.check_prompts(input_ids)
        return inputs

    def check_prompts(self, input_ids: torch.Tensor) -> None:
        """Raise a ValueError if prompts (B, L) are not this framework's; not inside `torch.compile`, which can't read them."""
        if self.placeholders is not None and not torch.compiler.is_compiling():
            check_placeholders(input_ids, self.config, self.placeholders)

    def check_guidance(self) -> None:
        """Raise a ValueError if predictions can't be guided away from those without a condition."""
        if "guidance" not in self.sampling_options:
            raise ValueError(
                f"{type(self).__name__} can't be guided: only velocities of flow matching and logits of tokens can be mixed "
                "(QwenPI, QwenPI_v3, QwenGR00T, QwenDual, QwenFAST). Leave guidance out, or set it to 1"
            )

    @property
    def attends_padding(self) -> bool:
        """Whether actions depend on how much a prompt is padded: StarVLA's checkpoints of some frameworks attend padding."""
        return not getattr(self.config, "mask_padding", True)

    def backbone_states(
        self, input_ids, attention_mask, known_states: Sequence[torch.Tensor] | None = None, **vlm_inputs
    ) -> list[torch.Tensor]:
        """Return h[0] … h[N] of the backbone's N decoder layers, (B, L, hidden_size) each, in the configured convention.

        `token_embeddings=`, a [`~hf_vla.modeling.backbone.TokenEmbeddings`], replaces the embeddings of some tokens. `plan=` is
        a [`~hf_vla.modeling.static_backbone.BackbonePlan`] of these inputs. `up_to=` is the index of the last state needed.
        `known_states=` is what an earlier call returned for these inputs, without `up_to`; the backbone then does not run.
        """
        if known_states is not None:
            return list(known_states[: vlm_inputs.get("up_to", -1) % len(known_states) + 1])
        convention = self.config.hidden_states_convention
        return layer_states(self.vlm, convention, input_ids=input_ids, attention_mask=attention_mask, **vlm_inputs)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters on which `backbone_states` depend: if all are frozen, an observation's states stay the same."""
        yield from self.vlm.parameters()

    def loss_counts(self, batch: Mapping) -> dict[str, int | torch.Tensor]:
        """Return the number of targets over which `forward` averages each loss of a batch: action steps, labelled tokens.

        The trainer weights the losses of several batches by these, so that every target counts the same; see
        [`~hf_vla.training.losses`]. With `sample_weight`, each target is counted that many times.
        """
        counts = {}
        conversations = batch.get("vlm_batch") or ({} if "actions" in batch else batch)
        if (labels := conversations.get("labels")) is not None:
            counts["vlm_loss"] = _weighted_sum(labelled(labels).sum(dim=1), conversations.get("sample_weight"))
        if batch.get("actions") is not None:
            counts["action_loss"] = _weighted_sum(self.targets_per_sample(batch), batch.get("sample_weight"))
        return counts

    def _language_model_loss(self, labels, sample_weight=None, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the backbone's loss on image-text samples, and that of each sample."""
        inputs = {name: value for name, value in inputs.items() if name not in self.head_inputs}
        return language_model_loss(self.vlm, labels, sample_weight=sample_weight, **inputs)

    def _last_steps(
        self, batch: int, actions: torch.Tensor | None, action_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the last `action_horizon` steps of actions (B, T, action_dim) and mask (B, T), as StarVLA trains on them."""
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

    def _state_input(self, state: torch.Tensor | None, batch: int) -> dict[str, torch.Tensor]:
        """Check the state, and return it as a keyword argument for the framework's methods; none if there is no state."""
        if state is None:
            return {}
        where = self.config.state_input
        if where == "prompt":
            raise ValueError(
                f"{type(self).__name__} reads the state as text in the prompt: give it to the processor, not to the model"
            )
        if where is None:
            raise ValueError(f"{type(self).__name__} does not read the robot's state; leave `state` out")
        if not self.config.state_dim:
            raise ValueError("this policy has no state encoder (state_dim is 0); leave `state` out")
        needed = (batch, 1, self.config.state_dim)
        if state.shape != needed:
            raise ValueError(f"state has shape {tuple(state.shape)}; this policy needs {needed}")
        return {"state": state}


def _weighted_sum(counts: torch.Tensor, sample_weight: torch.Tensor | None) -> torch.Tensor:
    return (counts if sample_weight is None else counts * sample_weight).sum()


__all__ = ["VLAOutput", "VLAPreTrainedModel"]
