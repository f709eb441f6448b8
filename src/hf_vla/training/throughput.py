"""What a run logs of its speed: seconds per step by phase, samples and tokens per second, MFU, peak memory."""

import sys
import time
from collections import Counter, deque
from collections.abc import Mapping

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from .flops import Shapes, peak_flops, shapes_of, training_flops

logger = logging.get_logger(__name__)

PHASES = ("data", "forward", "backward", "optimizer")


class PhaseClock:
    """Times phases that follow each other, without waiting for the device: by events on a GPU, else by the host's clock.

    On a GPU the phase "data" is how long the device waited for its batch; while it still works, reading costs nothing.
    """

    #: spans whose events are kept; older ones are over, and reading them does not wait
    MOST_SPANS = 256

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._running: tuple | None = None  # phase, when it began
        self._spans: deque[tuple] = deque()  # phase, beginning, end
        self._seconds: Counter = Counter()

    def start(self, phase: str | None) -> None:
        """End the phase that runs, and begin another; None begins none."""
        now = self._now()
        if self._running is not None:
            self._spans.append((*self._running, now))
        self._running = None if phase is None else (phase, now)
        self._add(self.MOST_SPANS)

    def take(self) -> Counter:
        """Return the seconds of each phase since the last call; a GPU is waited for."""
        self._add(0)
        seconds, self._seconds = self._seconds, Counter()
        return seconds

    def _add(self, left: int) -> None:
        """Add spans to the sums until so many are left."""
        while len(self._spans) > left:
            phase, start, end = self._spans.popleft()
            if self._cuda:
                end.synchronize()
            self._seconds[phase] += start.elapsed_time(end) / 1e3 if self._cuda else end - start

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class ThroughputRecorder(TrainerCallback):
    """Counts samples, tokens and operations of the steps, and times them; logging, saving and evaluation don't count.

    Args:
        trainer: whose batches and devices they are.
    """

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.clock = PhaseClock(trainer.args.device)
        self._known: dict[tuple, float] = {}
        self._reset()

    def _reset(self) -> None:
        self._steps, self._samples, self._flops = 0, 0, 0.0
        self._tokens: torch.Tensor | int = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)
        self._reset()
        self.clock = PhaseClock(args.device)
        if state.is_world_process_zero and (reason := self._why_no_mfu()) is not None:
            logger.info(f"no MFU is logged: {reason}")

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.start(None)
        self._steps += 1

    def count(self, batch: Mapping) -> float:
        """Count a micro-batch of a training step, and return its floating-point operations, 0 if they are not known.

        Of PPO's parts samples are counted only: the passes of a chunk's log-probability are not those of a training loss.
        """
        if "ppo" in batch:
            self._samples += len(batch["ppo"]["rows"])
            return 0.0
        for part in (batch, batch.get("vlm_batch") or {}):
            if "input_ids" in part:
                mask = part.get("attention_mask")
                self._tokens = self._tokens + (part["input_ids"].numel() if mask is None else mask.sum())
        counted = batch.get("actions", batch.get("input_ids"))  # patches are not samples
        self._samples += 0 if counted is None else len(counted)
        flops = self._flops_of(batch)
        self._flops += flops
        return flops

    def _flops_of(self, batch: Mapping) -> float:
        """Per shape of a batch they are counted once, from the first such batch."""
        key = tuple(
            (name, tuple(value.shape))
            for part in (batch, batch.get("vlm_batch") or {})
            for name, value in part.items()
            if isinstance(value, torch.Tensor)
        )
        if (flops := self._known.get(key)) is None:
            conversations = batch.get("vlm_batch")
            of_conversations = None if conversations is None else shapes_of(conversations)
            shapes = shapes_of(batch) if "input_ids" in batch else Shapes(0, 0)
            flops = training_flops(self.trainer.model, shapes, of_conversations)
            flops = self._known[key] = flops or 0.0
        return flops

    def _peak(self) -> float | None:
        """The device's FLOP/s in the run's precision."""
        args = self.trainer.args
        if args.device.type != "cuda":
            return None
        half = args.bf16 or args.fp16
        dtype = torch.bfloat16 if half else self.trainer.model.dtype
        tf32 = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # torch before 2.9 has only the other name
        tf32 = torch.get_float32_matmul_precision() != "highest" if tf32 is None else tf32 == "tf32"
        return peak_flops(torch.cuda.get_device_name(args.device), dtype, tf32)

    def _why_no_mfu(self) -> str | None:
        if self._peak() is None:
            device = self.trainer.args.device
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}"
            return f"the peak FLOP/s of {name} are not known"
        if training_flops(self.trainer.model, Shapes(1, 1)) is None:
            return f"the operations of {type(self.trainer.model).__name__} with its backbone are not known"
        return None

    def logs(self) -> dict[str, float]:
        """Return what is logged of the steps since the last call.

        Returns:
            `time/PHASE`, seconds per step; `samples_per_second` and `tokens_per_second` (padding left out) of all processes
            together; `mfu`, the fraction of the device's peak FLOP/s, if both are known; `peak_memory_gib`.
        """
        seconds, steps, world = self.clock.take(), self._steps, self.trainer.args.world_size
        samples, tokens, flops = self._samples, float(self._tokens), self._flops
        self._reset()
        if not steps or not (whole := seconds.total()):
            return {}
        logs = {f"time/{phase}": seconds[phase] / steps for phase in PHASES if phase in seconds}
        logs["samples_per_second"] = world * samples / whole
        if tokens:
            logs["tokens_per_second"] = world * tokens / whole
        if flops and (peak := self._peak()) is not None:
            logs["mfu"] = flops / whole / peak
        if (memory := peak_memory(self.trainer.args.device)) is not None:
            logs["peak_memory_gib"] = memory / 2**30
        return logs


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that tensors took on a GPU, or this process in memory; None if the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


__all__ = ["PHASES", "PhaseClock", "ThroughputRecorder", "peak_memory"]
