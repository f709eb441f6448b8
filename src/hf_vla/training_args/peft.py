"""`PeftArguments`: training an adapter (LoRA) of a policy in place of the policy, on a backbone in 4 or 8 bits if wanted."""

import dataclasses
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from ..checkpoints.adapted_modules import has_tied_embeddings, uncovered_modules
from ..checkpoints.quantization import check_bitsandbytes
from ..training.patterns import nearest

ALL_LINEAR = "all-linear"


@dataclass
class PeftArguments:
    """
    Args:
        use_peft: train an adapter of the policy, or of the backbone of a new policy, whose own weights stay as they are.
        lora_r, lora_alpha, lora_dropout: rank, scale (the update is multiplied by alpha / r) and dropout of LoRA.
        lora_target_modules: what gets LoRA: ends of module names ("q_proj"), or "all-linear" for all linear layers of the
            backbone. By default those of the backbone's language model, not of its vision tower.
        modules_to_save: what is trained in full and saved with the adapter: ends of module names. By default everything
            outside the backbone. QwenFAST, which has nothing there, always trains the vectors of its action tokens.
        use_rslora: divide by the root of the rank instead (Kalajdzievski 2023, arXiv 2312.03732).
        use_dora: learn magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353).
        load_in_4bit, load_in_8bit: hold the backbone in 4 bits (NF4, Dettmers et al. 2023, arXiv 2305.14314) or 8 bits.
    """

    use_peft: bool = field(default=False, metadata={"help": "train an adapter (LoRA), saved without its base"})
    lora_r: int = field(default=16, metadata={"help": "rank"})
    lora_alpha: int = field(default=32, metadata={"help": "the update is multiplied by lora_alpha / lora_r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout of LoRA's input"})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "ends of module names, or all-linear; default: linear layers of the language model"},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules trained in full; default: all outside the backbone"}
    )
    use_rslora: bool = field(default=False, metadata={"help": "scale by lora_alpha / sqrt(lora_r)"})
    use_dora: bool = field(default=False, metadata={"help": "learn magnitude and direction apart"})
    load_in_4bit: bool = field(default=False, metadata={"help": "backbone in 4 bits (bitsandbytes), with use_peft"})
    load_in_8bit: bool = field(default=False, metadata={"help": "backbone in 8 bits (bitsandbytes), with use_peft"})

    def __post_init__(self):
        if not self.use_peft:
            set_in_vain = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
            if set_in_vain:
                raise ValueError(f"{', '.join(set_in_vain)} need use_peft, which is not set")
        if self.lora_r < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_r {self.lora_r}, lora_alpha {self.lora_alpha}, lora_dropout {self.lora_dropout}: the rank must be "
                "at least 1, alpha positive, and the dropout in [0, 1)"
            )
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both set; keep one")

    def loading_options(self, policy, args) -> dict:
        """What loading the policy needs to be told.

        Args:
            policy: `PolicyArguments`.
            args: `VLATrainingArguments`.

        Raises:
            ValueError: settings that can't be used together.
            ImportError: bitsandbytes is needed and not installed.
        """
        if not self.use_peft:
            return {}
        base = policy.policy or policy.base_vlm
        if base is None:
            raise ValueError(
                "use_peft adapts pretrained weights, and vlm_config makes a backbone from scratch: set policy or base_vlm"
            )
        if args.pretrained_checkpoint:
            raise ValueError(
                "use_peft saves no base: weights loaded by pretrained_checkpoint would be lost. Set policy to "
                f"{args.pretrained_checkpoint} instead"
            )
        if Path(base).is_dir() and Path(base).resolve() == Path(args.output_dir).resolve():
            raise ValueError(f"output_dir is {base}, the base of the adapter; choose another folder")
        if not (self.load_in_4bit or self.load_in_8bit):
            return {}
        from transformers import BitsAndBytesConfig

        check_bitsandbytes()
        quantization = BitsAndBytesConfig(
            load_in_4bit=self.load_in_4bit,
            load_in_8bit=self.load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if args.bf16 or policy.dtype == "bfloat16" else torch.float32,
        )
        return {"quantization_config": quantization}


def add_adapter(model: nn.Module, policy, peft: PeftArguments):
    """The policy with a new adapter to train.

    Args:
        model: a policy, as `recipe.build` loads it.
        policy: `PolicyArguments`, which name the base.

    Returns:
        An `AdaptedPolicy`, which is a `PeftModel`.

    Raises:
        ValueError: a target or module that does not exist, can't be adapted, or new weights that would not be saved.
    """
    from peft import LoraConfig, prepare_model_for_kbit_training

    from ..training.adapted_policy import AdaptedPolicy

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
    """Full names of the modules that are trained in full: of those `given`, or of all outside the backbone."""
    if given is None:
        names = [name for name, _ in model.named_children() if name != "vlm"]
    else:
        names = [name for end in given for name in _ending(model, end, "modules_to_save")]
    # PEFT wraps what is called, so containers stand for what is in them.
    containers = (nn.ModuleList, nn.ModuleDict)
    while any(isinstance(model.get_submodule(name), containers) for name in names):
        modules = [(name, model.get_submodule(name)) for name in names]
        inner = [[f"{n}.{child}" for child, _ in m.named_children()] for n, m in modules if isinstance(m, containers)]
        names = [n for n, m in modules if not isinstance(m, containers)] + sum(inner, [])
    names = [name for name in names if any(True for _ in model.get_submodule(name).parameters())]
    _refuse_tied(model, names, "modules_to_save")
    return sorted(set(names))


def target_modules(model: nn.Module, given: list[str] | None, to_save: list[str]) -> str | list[str]:
    """What gets LoRA: a regular expression over the language model's linear layers by default, else the checked ends."""
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
                f"lora_target_modules: {end!r} is in {inside[0]}, which modules_to_save trains in full; keep one of both"
            )
        if not set(names) & linear:
            kind = type(model.get_submodule(names[0])).__name__
            possible = sorted({name.rpartition(".")[2] for name in linear if name.startswith("vlm.")})
            raise ValueError(
                f"lora_target_modules: {end!r} is no linear layer but a {kind} ({names[0]}); linear layers in the backbone "
                f"are {', '.join(possible)}"
            )
        _refuse_tied(model, names, "lora_target_modules")
    return list(given)


def action_tokens(model: nn.Module) -> dict[str, list[int]]:
    """For policies whose actions are words of the language: rows of the embeddings, and of the head where it is not the same."""
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
        near = get_close_matches(end, sorted(ends), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else nearest(model, end)
        raise ValueError(f"{option}: no module is called {end!r}; {hint}")
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


__all__ = ["PeftArguments", "action_tokens", "add_adapter", "modules_to_save", "target_modules"]
