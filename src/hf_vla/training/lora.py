"""LoRA: adding an adapter to a policy, and the PEFT model whose folders the Auto classes load as policies."""

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..cards.model_card import LeavesModelCard
from ..checkpoints.adapted_modules import (
    has_tied_embeddings,
    tied_embeddings_shown,
    uncovered_modules,
    weight_fingerprint,
)
from ..checkpoints.adapters import describe_base
from ..checkpoints.opening import find_checkpoint
from ..training_args.peft import PeftArguments
from ..utils.suggestions import did_you_mean
from .checkpointing import SAVING
from .parameter_groups import suggest_modules

ALL_LINEAR, NONE = "all-linear", "none"
#: Settings that a resumed run must share with its checkpoint; which modules are adapted shows in the names of the tensors.
_UNCHANGEABLE = ("r", "lora_alpha", "use_rslora", "use_dora", "trainable_token_indices")


class AdaptedPolicy(LeavesModelCard, PeftModel):
    """The `PeftModel` of a policy. Trained weights are float32, whatever the dtype of the frozen ones.

    Args:
        model: the policy; it is changed in place.
        peft_config: describes the adapter, including `base_model_name_or_path`.
    """

    def __init__(self, model: torch.nn.Module, peft_config: LoraConfig):
        base_fingerprint = {name: values.tolist() for name, values in weight_fingerprint(model).items()}
        with tied_embeddings_shown(model):
            super().__init__(model, peft_config)
        self.base_fingerprint = base_fingerprint
        for module in model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                for parameter in module.parameters():
                    if parameter.requires_grad:
                        parameter.data = parameter.data.float()

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """Write the adapter, the policy's configuration, and the fingerprint of the base."""
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, **{"save_embedding_layers": False, **kwargs}
        )
        if is_main_process:
            final = Path(*(part for part in Path(save_directory).absolute().parts if part != SAVING))
            describe_base(save_directory, self, self.base_fingerprint, final)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Do nothing: the policy's own card replaces PEFT's."""

    def load_adapter(self, model_id, adapter_name: str = "default", is_trainable: bool = False, **kwargs):
        """Load a checkpoint's weights, as the Trainer does when it resumes.

        Raises:
            ValueError: the checkpoint belongs to another adapter or base, or is incomplete.
        """
        if adapter_name not in self.peft_config:
            return super().load_adapter(model_id, adapter_name, is_trainable=is_trainable, **kwargs)
        adapter = find_checkpoint(model_id)
        if adapter is None or not adapter.is_adapter:
            raise ValueError(f"{model_id} holds no adapter; resume from a checkpoint of a run with use_peft")
        saved, own = adapter.settings(), self.peft_config[adapter_name]
        for name in _UNCHANGEABLE:
            if saved.get(name) != getattr(own, name):
                raise ValueError(
                    f"{model_id} was trained with {name} {saved.get(name)!r:.80}, this run has {getattr(own, name)!r:.80}; "
                    "resume with the settings of that run (its config.yaml), or start a new one"
                )
        adapter.check_base(self, "the base of this run")
        return adapter.load_weights(self)


def add_adapter(model: nn.Module, policy, peft: PeftArguments):
    """Add a new adapter to train to a policy.

    Args:
        model: a policy, as loaded by `recipe.build`; it is changed in place.
        policy: `PolicyArguments`, which name the base.
        peft: the adapter's settings.

    Returns:
        An `AdaptedPolicy`, which is a `PeftModel`.

    Raises:
        ValueError: a target or module that does not exist or can't be adapted, or new weights that would not be saved.
    """
    base = policy.policy or policy.base_vlm
    to_save = modules_to_save(model, peft.modules_to_save)
    targets = target_modules(model, peft.lora_target_modules, to_save)
    tokens = {name: rows for name, rows in action_tokens(model).items() if name not in to_save}
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=peft.lora_r,
        lora_alpha=peft.lora_alpha,
        lora_dropout=peft.lora_dropout,
        use_rslora=peft.use_rslora,
        use_dora=peft.use_dora,
        target_modules=targets,
        modules_to_save=to_save or None,
        trainable_token_indices=tokens or None,
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).is_dir() else base,
    )
    adapted = AdaptedPolicy(model, config)
    if policy.base_vlm and (lost := uncovered_modules(model)):
        raise ValueError(
            f"{', '.join(lost)} are new and would not be saved: with base_vlm, leave modules_to_save out, or name all "
            "modules outside the backbone"
        )
    return adapted


def modules_to_save(model: nn.Module, given: list[str] | None) -> list[str]:
    """Return the full names of the modules to train in full: those `given`, or all outside the backbone.

    Args:
        given: ends of module names, or `["none"]`.
    """
    if given == [NONE]:
        return []
    if given is None:
        names = [name for name, _ in model.named_children() if name != "vlm"]
    else:
        names = [name for end in given for name in _ending(model, end, "modules_to_save")]
    # PEFT wraps modules that are called, so containers are replaced by what is in them.
    containers = (nn.ModuleList, nn.ModuleDict)
    while any(isinstance(model.get_submodule(name), containers) for name in names):
        modules = [(name, model.get_submodule(name)) for name in names]
        inner = [[f"{n}.{child}" for child, _ in m.named_children()] for n, m in modules if isinstance(m, containers)]
        names = [n for n, m in modules if not isinstance(m, containers)] + sum(inner, [])
    names = [name for name in names if any(True for _ in model.get_submodule(name).parameters())]
    _refuse_tied(model, names, "modules_to_save")
    return sorted(set(names))


def target_modules(model: nn.Module, given: list[str] | None, to_save: list[str]) -> str | list[str]:
    """Return what gets LoRA: a regular expression for the language model's linear layers, or the checked `given`.

    Args:
        given: ends of module names, or `["all-linear"]` for all linear layers of the backbone.
        to_save: modules that are trained in full.
    """
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if given is None:
        decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
        ends = sorted({name.rpartition(".")[2] for name in linear if name.startswith(f"{decoder}.")})
        return rf"{re.escape(decoder)}\..*\.({'|'.join(ends)})"
    if given == [ALL_LINEAR]:
        head = model.get_output_embeddings()
        of_vlm = {name for name in linear if name.startswith("vlm.") and model.get_submodule(name) is not head}
        return sorted(of_vlm)
    for end in given:
        names = _ending(model, end, "lora_target_modules")
        inside = [n for n in names if any(n == module or n.startswith(f"{module}.") for module in to_save)]
        if len(inside) == len(names):
            raise ValueError(
                f"lora_target_modules: {end!r} is in {inside[0]}, which modules_to_save trains in full; keep one of them"
            )
        if not set(names) & linear:
            kind = type(model.get_submodule(names[0])).__name__
            possible = sorted({name.rpartition(".")[2] for name in linear if name.startswith("vlm.")})
            raise ValueError(
                f"lora_target_modules: {end!r} is not a linear layer but a {kind} ({names[0]}); linear layers in the backbone "
                f"are {', '.join(possible)}"
            )
        _refuse_tied(model, names, "lora_target_modules")
    return list(given)


def action_tokens(model: nn.Module) -> dict[str, list[int]]:
    """Return the rows of the action tokens in the word embeddings, and in the language-model head if it is untied.

    Empty for policies whose actions are not tokens.
    """
    first = getattr(model.config, "action_token_offset", None)
    if first is None:
        return {}
    layers = [model.get_input_embeddings()]
    if not has_tied_embeddings(model):
        layers.append(model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    return {name: list(range(first, first + model.config.num_action_tokens)) for name in names}


def _ending(model: nn.Module, end: str, option: str) -> list[str]:
    names = [name for name, _ in model.named_modules() if name == end or name.endswith(f".{end}")]
    if not names:
        ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        hint = did_you_mean(end, sorted(ends)) or suggest_modules(model, end)
        raise ValueError(f"{option}: no module is called {end!r}{hint}")
    return names


def _refuse_tied(model: nn.Module, names: list[str], option: str) -> None:
    if not has_tied_embeddings(model):
        return
    shared = (model.get_input_embeddings(), model.get_output_embeddings())
    for name in names:
        if any(module in shared for module in model.get_submodule(name).modules()):
            raise ValueError(
                f"{option}: {name} holds the word embeddings, which are the language-model head too and can't be adapted "
                "apart; leave it out"
            )


__all__ = ["AdaptedPolicy", "action_tokens", "add_adapter", "modules_to_save", "target_modules"]
