"""What tells a policy from others: a hash of some of its numbers and of its settings."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# Of each weight. Training moves practically all of them.
_VALUES = 32


@torch.no_grad()
def fingerprint(model: nn.Module, processor, asked: Mapping[str, Any] | None = None) -> str:
    """Return 16 hexadecimal digits that differ for policies with different weights, dtypes or settings.

    Args:
        model: a policy model; of weights that are elsewhere (on the meta device), only name and shape count.
        processor: its processor.
        asked: what else decides its predictions, for JSON, if anything does.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters(), key=lambda named: named[0]):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if not weight.is_meta and weight.numel():
            flat = weight.detach().flatten()
            digest.update(flat[:: max(1, len(flat) // _VALUES)][:_VALUES].to(torch.float32).cpu().numpy().tobytes())
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    digest.update(json.dumps([model.config.model_type, settings], sort_keys=True, default=str).encode())
    if asked:
        digest.update(json.dumps(dict(asked), sort_keys=True).encode())
    return digest.hexdigest()[:16]


__all__ = ["fingerprint"]
