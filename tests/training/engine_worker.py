"""One of two processes that torchrun started on the CPU, for `test_engines.py`.

torchrun --nproc_per_node 2 engine_worker.py train '[["recipe.yaml", "--max_steps", "2"], …]'    # run after run
torchrun --nproc_per_node 2 engine_worker.py train_fsdp2 '{"environment": …, "runs": …}'    # the same under FSDP2
torchrun --nproc_per_node 2 engine_worker.py sharded '{"zero3": …, "fsdp2": …}'    # models and gradients in shares
"""

import json
import os
import sys
from types import SimpleNamespace

import deepspeed
import torch
from cpu_processes import allow_fsdp2
from torch.distributed.device_mesh import init_device_mesh

import hf_vla  # noqa: F401 - registers the policies
from hf_vla import QwenOFTForActionPrediction
from hf_vla.checkpoints.zero3 import not_partitioned
from hf_vla.commands.train import main
from hf_vla.training.trainer import load_pretrained


def train(runs: list[list[str]]) -> None:
    for arguments in runs:
        main(arguments)


def train_fsdp2(options: dict) -> None:
    allow_fsdp2(options["environment"])
    train(options["runs"])


def whole(parameter: torch.Tensor) -> torch.Tensor:
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def assert_same(partitioned: torch.nn.Module, expected: dict[str, torch.Tensor], but: str = " ") -> None:
    own = partitioned.state_dict(keep_vars=True)
    assert set(own) == set(expected)
    shares = 0
    for name, parameter in own.items():
        shares += hasattr(parameter, "ds_id")
        full = whole(parameter)
        assert full.shape == expected[name].shape, name
        if not name.startswith(but):
            assert torch.equal(full, expected[name]), name
        elif full.ndim > 1:
            assert full.std() > 0, f"{name} was not initialised"
    assert shares, "ZeRO-3 was not on"


def zero3(options: dict) -> None:
    """Policies are loaded and made under ZeRO-3 as without it."""
    from transformers import AutoModel
    from transformers.integrations import HfDeepSpeedConfig

    keep = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
    with not_partitioned():
        own = AutoModel.from_pretrained(options["folder"]).state_dict()
        native = AutoModel.from_pretrained(options["native"], base_vlm=options["base_vlm"]).state_dict()
        made = QwenOFTForActionPrediction.from_vlm(options["vlm"], action_dim=2)[0].state_dict()
    policy = AutoModel.from_pretrained(options["folder"])
    assert_same(policy, own)
    assert_same(AutoModel.from_pretrained(options["native"], base_vlm=options["base_vlm"]), native)
    assert_same(QwenOFTForActionPrediction.from_vlm(options["vlm"], action_dim=2)[0], made, but="action_head.")
    load_pretrained(policy, options["other"], ["action_head"])
    with not_partitioned():
        other = AutoModel.from_pretrained(options["other"]).state_dict()
    assert_same(policy, own | {name: other[name] for name in other if name.startswith("action_head")})
    try:
        AutoModel.from_pretrained(options["too_much"])
    except ValueError as error:
        assert "1 unexpected keys: vlm.surplus" in str(error), error
    else:
        raise AssertionError("a surplus tensor went unnoticed")
    del keep


def fsdp2(options: dict) -> None:
    """Gradients of two steps under FSDP2, wrapped by accelerate as `launch_configs/fsdp2.yaml` says, are those of one process."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import FSDPModule
    from transformers import AutoModel

    os.environ.update(options["environment"])
    given = torch.load(options["batches"], weights_only=True)
    policy = AutoModel.from_pretrained(options["folder"]).train()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin()),
        torch_device_mesh={("dp",): mesh},
        parallelism_config=SimpleNamespace(fsdp_dim_names=["dp"]),
        mixed_precision="no",
        is_main_process=torch.distributed.get_rank() == 0,
        device=torch.device("cpu"),
    )
    model = fsdp2_prepare_model(accelerator, policy)
    wrapped = {type(module).__mro__[2].__name__ for module in model.modules() if isinstance(module, FSDPModule)}
    assert wrapped >= set(options["blocks"]), wrapped
    for step in range(2):
        model.zero_grad()
        model(**given["batches"][torch.distributed.get_rank()]).loss.backward()
        for name, parameter in model.named_parameters():
            expected = given["gradients"].get(name)
            assert (parameter.grad is None) == (expected is None), name
            if expected is not None:
                found = parameter.grad.full_tensor()
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=f"{name} in step {step}")


def sharded(options: dict) -> None:
    zero3(options["zero3"])
    fsdp2(options["fsdp2"])


if __name__ == "__main__":
    # By gloo: DeepSpeed's own shared memory collectives would be compiled first, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    {"train": train, "train_fsdp2": train_fsdp2, "sharded": sharded}[sys.argv[1]](json.loads(sys.argv[2]))
