"""Where a policy without a denoising head looks: the attention of its backbone, from the tokens that become actions.

OFT regresses actions from placeholders in the prompt, Adapter reads learned queries there, FAST writes action tokens one by one.
"""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import torch

from ..modeling.placeholders import last_placeholders
from ..transformers_internals import attention_implementation, set_attention_implementation
from .prediction import maps_on_images


class BackboneRecorder:
    """Records the attention weights of the backbone's layers in one prediction for one observation.

    Args:
        model: the policy's model.
        input_ids: the prompt, (1, L).
        positions: where in the prompt each image's cells are, as for [`~hf_vla.inference.prediction.Recorder`].
    """

    def __init__(self, model, input_ids: torch.Tensor, positions: list[np.ndarray]):
        self._model, self._positions = model, positions
        self._length = input_ids.shape[1]
        placeholders = getattr(model, "placeholders", None)
        if placeholders is None:  # the prompt's last token is the one from which the first action token is written
            self._rows = torch.tensor([self._length - 1])
        else:
            self._rows = last_placeholders(input_ids, model.config, placeholders)[0]
        self._thread = threading.get_ident()
        self._sums: dict[int, torch.Tensor] = {}
        self._count: dict[int, int] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record what this thread does with the model in the `with` block.

        Attention is then computed in plain torch, uncompiled, by a setting of the model: no other thread may use it meanwhile.
        """
        decoder = self._model.vlm.get_decoder()
        layers = [layer.self_attn for layer in decoder.layers if hasattr(layer, "self_attn")]
        hooks = [layer.register_forward_hook(self._hook(index)) for index, layer in enumerate(layers)]
        config, compiled = decoder.config, self._model.compiled_sampling
        before, decoding = attention_implementation(config), getattr(self._model, "decoding", None)
        try:
            set_attention_implementation(config, "eager")  # the kernels give no weights
            self._model.compiled_sampling = None
            if decoding:
                self._model.decoding = {}
            yield
        finally:
            set_attention_implementation(config, before)
            self._model.compiled_sampling = compiled
            if decoding:
                self._model.decoding = decoding
            for hook in hooks:
                hook.remove()

    def _hook(self, index: int):
        def keep(module, inputs, outputs) -> None:
            weights = outputs[1] if isinstance(outputs, tuple) and len(outputs) > 1 else None
            if weights is None or threading.get_ident() != self._thread:
                return
            rows = self._rows.to(weights.device) if weights.shape[2] == self._length else slice(None)
            seen = weights[0, :, rows, : self._length].float().mean(dim=(0, 1))
            self._sums[index] = self._sums.get(index, 0) + seen
            self._count[index] = self._count.get(index, 0) + 1

        return keep

    def attention(self) -> list[np.ndarray]:
        """Return one map (layers, 1, rows, columns) per image, averaged over heads and action tokens.

        Raises:
            ValueError: the backbone's layers give no attention weights.
        """
        if not self._sums:
            raise ValueError(
                f"the layers of a {type(self._model.vlm).__name__} give no attention weights, so there is nothing to trace"
            )
        weights = torch.stack([self._sums[index] / self._count[index] for index in sorted(self._sums)])
        return maps_on_images(weights[:, None].cpu().numpy(), self._positions)


__all__ = ["BackboneRecorder"]
