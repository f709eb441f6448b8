"""A policy of a few numbers, and trainers for it: what does not depend on a real model is tested on it in milliseconds."""

import torch
from torch import nn
from transformers import default_data_collator

from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments


class TinyPolicy(nn.Module):
    """Looks a token up (`vlm`), and makes an action of it (`action_head`); dropout in both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vlm = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4))
        self.action_head = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2))
        self.action_queries = nn.Parameter(torch.randn(1, 1, 4))

    @property
    def dtype(self) -> torch.dtype:
        return self.action_queries.dtype

    def loss_counts(self, batch) -> dict[str, int]:
        return {"action_loss": len(batch["actions"])}

    def forward(self, token, actions, labels=None):
        predicted = self.action_head(self.vlm(token)[:, None] + self.action_queries)
        loss = (predicted - actions).pow(2).mean()
        return {"loss": loss, "action_loss": loss}


def items(number: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [{"token": i % 5, "actions": torch.randn(1, 2, generator=generator)} for i in range(number)]


def tiny_trainer(folder, model: nn.Module | None = None, callbacks=None, **arguments) -> VLATrainer:
    defaults = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    defaults |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = VLATrainingArguments(output_dir=str(folder), **{**defaults, **arguments})
    data = {"train_dataset": items(), "eval_dataset": items(), "data_collator": default_data_collator}
    return VLATrainer(model or TinyPolicy(), args, callbacks=callbacks, **data)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
