"""What DDP, FSDP2 and DeepSpeed need of a policy's training beyond their own configurations (`configs/`)."""

import dataclasses

import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback

from ..training_args.arguments import VLATrainingArguments


def prepare_arguments(args: VLATrainingArguments) -> None:
    """Settings that follow from how policies are, where the user left them open."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process. Start one process a GPU, `python -m torch.distributed.run "
            "--standalone --nproc_per_node gpu -m hf_vla train …`, or choose one by CUDA_VISIBLE_DEVICES=0"
        )
    if args.ddp_find_unused_parameters is None:
        # Some parameters of a policy take no part in its loss: output heads that its checkpoints hold unused, the
        # backbone's last layers. transformers would look for them only without activation checkpointing.
        args.ddp_find_unused_parameters = True


def prepare_accelerator(accelerator: Accelerator, model: nn.Module) -> None:
    """Correct what accelerate's FSDP2 would do to a policy."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.activation_checkpointing and any(m.p for m in model.modules() if isinstance(m, nn.Dropout)):
        raise ValueError(
            "fsdp_activation_checkpointing computes blocks anew with other dropout, so that gradients are wrong; this policy "
            "has dropout. Switch it off in the FSDP configuration and set activation_checkpointing: true in the recipe"
        )
    if plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = float32_sums(plugin.mixed_precision_policy)


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights only: FSDP, ZeRO-3, by the launcher's settings or the recipe's."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return getattr(accelerator.state, "fsdp_plugin", None) is not None or (
        plugin is not None and plugin.zero_stage == 3
    )


class OwnDraws(TrainerCallback):
    """Gives each process random numbers of its own as training begins: noise, denoising time, dropout.

    The Trainer seeds all alike, by which they have made the same model, but their samples should not get the same noise. Not
    earlier: accelerate's sampler of a shuffled dataset is made before, of a seed that it takes for common to all processes.
    A resumed run goes on with the numbers of its checkpoint, which are loaded later.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:
            torch.manual_seed(args.seed + args.process_index)


def float32_sums(policy):
    """An FSDP2 mixed precision policy whose gradients are summed, and whose losses are returned, in float32."""
    return dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=torch.float32)


__all__ = ["OwnDraws", "float32_sums", "prepare_accelerator", "prepare_arguments", "shards_weights"]
