"""What training a policy under DDP, FSDP2 or DeepSpeed needs beyond their own configurations (`launch_configs/`)."""

import dataclasses
import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.utils import logging

from ..modeling.compiled_sampling import reason_of
from ..training_args.arguments import VLATrainingArguments

logger = logging.get_logger(__name__)


def prepare_arguments(args: VLATrainingArguments) -> None:
    """Fill in settings that the nature of policies decides, if the user has not set them.

    Raises:
        ValueError: several GPUs in one process.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process. Start one process per GPU, `python -m torch.distributed.run "
            "--standalone --nproc_per_node gpu -m hf_vla train …`, or choose one by CUDA_VISIBLE_DEVICES=0"
        )
    if args.ddp_find_unused_parameters is None:
        # Some parameters of a policy take no part in its loss: unused output heads of its checkpoints, the backbone's last
        # layers. transformers would look for them only without activation checkpointing.
        args.ddp_find_unused_parameters = True


def compile_by_default(args: VLATrainingArguments, model: nn.Module) -> None:
    """Decide `torch_compile` if the user has not: on a GPU, with whole weights that are not quantised, if torch can compile there.

    What can't be compiled later on, such as a block of a new kind, runs as it is.
    """
    if args.torch_compile is not None:
        return
    args.torch_compile = False
    sharded = args.deepspeed or args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if args.device.type != "cuda" or sharded or getattr(model, "is_quantized", False):
        return
    if (reason := why_not_compiled(args.device)) is not None:
        logger.warning(f"training without torch.compile, which does not work here: {reason}")
        return
    args.torch_compile, args.torch_compile_backend = True, "inductor"
    torch._dynamo.config.suppress_errors = True


def why_not_compiled(device: torch.device) -> str | None:
    """Return what the error of compiling a small function says, None if there is none."""
    try:
        torch.compile(torch.square)(torch.ones(8, device=device))
    except (ImportError, OSError, RuntimeError) as error:
        return reason_of(error)
    return None


def prepare_accelerator(accelerator: Accelerator, model: nn.Module) -> None:
    """Correct what accelerate's FSDP2 would do to a policy.

    Raises:
        ValueError: FSDP's own activation checkpointing, for a policy with dropout.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.activation_checkpointing and any(m.p for m in model.modules() if isinstance(m, nn.Dropout)):
        raise ValueError(
            "fsdp_activation_checkpointing recomputes blocks with another dropout mask, which makes gradients wrong; this "
            "policy has dropout. Switch it off in the FSDP configuration and set activation_checkpointing: true in the recipe"
        )
    if plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = float32_sums(plugin.mixed_precision_policy)


def shards_weights(accelerator: Accelerator) -> bool:
    """Return whether each process holds only a part of the weights: FSDP or ZeRO-3, set by the launcher or the recipe."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return getattr(accelerator.state, "fsdp_plugin", None) is not None or (
        plugin is not None and plugin.zero_stage == 3
    )


@torch.no_grad()
def copy_full_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy the weights of a model that is sharded over processes into a whole one; all processes call it.

    Args:
        sharded: by FSDP2 or ZeRO-3.
    """
    targets = dict(whole.named_parameters())
    for name, parameter in sharded.named_parameters():
        target = targets[name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")]
        if isinstance(parameter, DTensor):
            target.copy_(parameter.full_tensor())
        elif hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                target.copy_(parameter)
        else:
            target.copy_(parameter)


class PerProcessSeed(TrainerCallback):
    """Seeds each process differently as training begins: noise, denoising time, dropout.

    The Trainer gives all the same seed, so that they build the same model, but their samples should not get the same noise.
    Not earlier: accelerate's sampler of a shuffled dataset is made before, from a seed that must be the same in all processes.
    A resumed run continues with the random states of its checkpoint, which are loaded later.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:
            torch.manual_seed(args.seed + args.process_index)


def float32_sums(policy):
    """Return an FSDP2 mixed-precision policy that sums gradients and returns losses in float32."""
    return dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=torch.float32)


__all__ = [
    "PerProcessSeed",
    "compile_by_default",
    "copy_full_weights",
    "float32_sums",
    "prepare_accelerator",
    "prepare_arguments",
    "shards_weights",
    "why_not_compiled",
]
