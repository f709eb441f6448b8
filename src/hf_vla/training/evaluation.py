"""`EvaluatingTrainer`: transformers' `Trainer` with open- and closed-loop evaluation of policies, keeping the best one."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import Trainer
from transformers.utils import logging

from ..utils.suggestions import did_you_mean
from .engines import shards_weights
from .open_loop import (
    EXTRAS,
    EvaluationCollator,
    IndexedDataset,
    action_errors,
    metric_names,
    noise_for,
    sample_errors,
)

logger = logging.get_logger(__name__)

# The seed of all random numbers in an evaluation: two evaluations differ only in the policy.
_SEED = 0
# Rollouts run on one process, for as long as they take. The others wait in a process group of their own with this
# timeout, as the training group's would end the run.
_TIMEOUT = timedelta(days=7)


class EvaluatingTrainer(Trainer):
    """Adds to `Trainer.evaluate` the open-loop action error of `eval_dataset`, and closed-loop results.

    Metrics: those of [`~hf_vla.training.open_loop.action_errors`], `eval_loss`, and those that `closed_loop` returns. An
    evaluation leaves all random number generators as they were: a run is the same with and without it.

    With `metric_for_best_model`, the best policy so far is in `OUTPUT/best`, independently of `save_strategy` and
    `save_total_limit`; with `load_best_model_at_end`, it is a checkpoint that is kept, and at the end `OUTPUT` itself.

    Args:
        eval_dataset: items as in `LeRobotDataset`.
        closed_loop: called as `closed_loop(model, processor)` on the main process at each evaluation; returns metrics by
            name, which get the prefix "eval_". It may have an attribute `metric_names`, the list of these names.
        kwargs: as for `Trainer`.
    """

    def __init__(self, model=None, args=None, *, closed_loop: Callable | None = None, **kwargs):
        if closed_loop is not None and kwargs.get("eval_dataset") is None:
            kwargs["eval_dataset"] = []  # the Trainer requires one; on an empty one it evaluates nothing
        if closed_loop is not None and isinstance(kwargs["eval_dataset"], dict):
            raise ValueError("closed_loop can be combined with one eval_dataset, not with a dict of them")
        super().__init__(model, args, **kwargs)
        self.closed_loop, self._closed_loop_metrics = closed_loop, {}
        # A custom compute_metrics reads the model's outputs; without a processor there are no robot units.
        self._open_loop = self.compute_metrics is None and self.processing_class is not None
        self._waiting = None
        if closed_loop is not None and dist.is_initialized() and dist.get_world_size() > 1:
            self._refuse_sharded()
            self._waiting = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._check_best_metric()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        kept = self.compute_metrics
        try:
            if self._open_loop:
                self.compute_metrics = self._action_errors  # not for `predict`, whose batches have no recorded actions
            with _separate_randomness(self.args.device), _undecodable_as_zeros(self.model):
                if self.closed_loop is not None and metric_key_prefix == "eval":
                    self._closed_loop_metrics = self._on_main_process(self._roll_out)
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.compute_metrics = kept

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        found, self._closed_loop_metrics = self._closed_loop_metrics, {}
        output.metrics.update({f"{metric_key_prefix}_{name}": float(value) for name, value in found.items()})
        return output

    # ------------------------------------------------------------------ open loop

    def get_eval_dataloader(self, eval_dataset=None):
        if not self._open_loop:
            return super().get_eval_dataloader(eval_dataset)
        kept, self.data_collator = self.data_collator, EvaluationCollator(self.data_collator, self.processing_class)
        try:
            chosen = self.eval_dataset if eval_dataset is None else eval_dataset
            return super().get_eval_dataloader(
                IndexedDataset(self.eval_dataset[chosen] if isinstance(chosen, str) else chosen)
            )
        finally:
            self.data_collator = kept

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss, the sums of `sample_errors` in place of logits, and the statistics keys in place of labels."""
        if not set(EXTRAS) <= set(inputs):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = dict(self._prepare_inputs(inputs))
        extras = {name: inputs.pop(name) for name in EXTRAS}
        policy = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if isinstance(policy, FSDPModule):
            register_fsdp_forward_method(policy, "predict_action")
        index = extras["evaluation_index"]
        noise = noise_for(index, policy.config.action_horizon, policy.config.action_dim, _SEED).to(self.args.device)
        torch.manual_seed(_SEED + int(index[0]))  # the loss's noise does not depend on earlier batches
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, dict(inputs)).detach().mean()
            with self.accelerator.autocast():
                predicted = policy.predict_action(**inputs, noise=noise)
        errors = sample_errors(predicted, inputs, extras, self.processing_class)
        return loss, errors, extras["evaluation_key"]

    def _action_errors(self, evaluated) -> dict[str, float]:
        return action_errors(*evaluated.predictions, evaluated.label_ids, self.processing_class)

    # ---------------------------------------------------------------- closed loop

    def _roll_out(self) -> dict[str, float]:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with torch.no_grad(), self.accelerator.autocast():
            return self.closed_loop(model.eval(), self.processing_class)

    def _on_main_process(self, function: Callable[[], Any]) -> Any:
        """Call `function` on the main process and return its result on all; if it fails, all processes raise."""
        if self._waiting is None:
            return function()
        result, failure = [None, None], None
        if self.is_world_process_zero():
            try:
                result = [function(), None]
            except Exception as error:
                failure, result = error, [None, f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(result, src=0, group=self._waiting)
        if failure is not None:
            raise failure
        if result[1] is not None:
            raise RuntimeError(f"closed-loop evaluation failed on the main process: {result[1]}")
        return result[0]

    def _refuse_sharded(self) -> None:
        if shards_weights(self.accelerator):
            raise ValueError(
                "closed-loop evaluation runs on one process, which under FSDP and ZeRO-3 has only a part of the weights; "
                "leave eval_env out and evaluate checkpoints with hf-vla eval"
            )

    # ----------------------------------------------------------------- best policy

    def _check_best_metric(self) -> None:
        """Raise a ValueError if metric_for_best_model is not a metric that evaluations will have."""
        metric = self.args.metric_for_best_model
        if metric is None:
            return
        if self.args.eval_strategy == "no":
            raise ValueError(
                f"metric_for_best_model is {metric!r}, but nothing is evaluated; set eval_strategy and what to evaluate on"
            )
        names = getattr(self.closed_loop, "metric_names", []) if self.closed_loop is not None else []
        keys = getattr(self.eval_dataset, "keys", None)
        knows_all = isinstance(keys, list) if self.eval_dataset else names
        if not knows_all or not self._open_loop:
            return
        if self.eval_dataset:
            names = ["loss", *metric_names(keys, self.processing_class), *names]
        known = [f"eval_{name}" for name in names]
        if "eval_" + metric.removeprefix("eval_") not in known:
            raise ValueError(
                f"metric_for_best_model is {metric!r}; the metrics will be {', '.join(known)}{did_you_mean(metric, known)}"
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        best = super()._determine_best_metric(metrics=metrics, trial=trial)
        if best and not self.args.load_best_model_at_end:
            self._keep_best(metrics)
        return best

    def _keep_best(self, metrics: dict[str, float]) -> None:
        """Write `OUTPUT/best`, whole or not at all."""
        best, partial, previous = (
            Path(self.args.output_dir, name) for name in ("best", ".best.partial", ".best.previous")
        )
        main = self.is_world_process_zero()
        if main:
            if previous.exists() and not best.exists():  # the process was killed while replacing it
                previous.rename(best)
            for leftover in (partial, previous):
                shutil.rmtree(leftover, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(partial), _internal_call=True)
        self.accelerator.wait_for_everyone()
        if main:
            about = {"step": self.state.global_step, "metric": self.args.metric_for_best_model, "metrics": metrics}
            (partial / "evaluation.json").write_text(json.dumps(about, indent=2))
            if best.exists():
                best.rename(previous)
            os.replace(partial, best)
            shutil.rmtree(previous, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        logger.info(f"step {self.state.global_step}: best {self.args.metric_for_best_model} so far, kept in {best}")


@contextlib.contextmanager
def _separate_randomness(device: torch.device) -> Iterator[None]:
    """Use fixed seeds inside, and restore all random states afterwards."""
    kept = random.getstate(), np.random.get_state()
    module = torch.get_device_module(device)
    forked = device.type not in ("cpu", "mps")  # these have a single generator
    devices = [module.current_device()] if forked else []
    with torch.random.fork_rng(devices, device_type=device.type if forked else "cuda"):
        try:
            random.seed(_SEED)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


@contextlib.contextmanager
def _undecodable_as_zeros(model: torch.nn.Module) -> Iterator[None]:
    """Let an undecodable prediction count as zeros: early in training, a FAST policy generates token sequences that decode to none."""
    config = getattr(model, "config", None)
    kept = getattr(config, "zeros_if_undecodable", None)
    if kept is not None:
        config.zeros_if_undecodable = True
    try:
        yield
    finally:
        if kept is not None:
            config.zeros_if_undecodable = kept


__all__ = ["EvaluatingTrainer"]
