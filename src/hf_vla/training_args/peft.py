"""`PeftArguments`: training an adapter (LoRA) instead of the policy, optionally on a backbone in 4 or 8 bits."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoints.quantization import check_bitsandbytes


@dataclass
class PeftArguments:
    """Train an adapter (LoRA), optionally on a quantised backbone.

    Args:
        use_peft: train an adapter of the policy, or of the backbone of a new policy; the adapted weights stay as they are.
        lora_r, lora_alpha, lora_dropout: rank, scale (the update is multiplied by alpha / r) and dropout of LoRA.
        lora_target_modules: the modules that get LoRA: endings of module names ("q_proj"), or "all-linear" for all linear
            layers of the backbone. By default those of the backbone's language model, not of its vision tower.
        modules_to_save: the modules that are trained in full and saved with the adapter: endings of module names. By default
            everything outside the backbone; "none" is nothing, for adapters of the head too. QwenFAST, which has nothing there, always trains the embeddings of its action
            tokens.
        use_rslora: divide by the square root of the rank instead (Kalajdzievski 2023, arXiv 2312.03732).
        use_dora: learn magnitude and direction separately (Liu et al. 2024, arXiv 2402.09353).
        load_in_4bit, load_in_8bit: hold the backbone in 4 bits (NF4, Dettmers et al. 2023, arXiv 2305.14314) or 8 bits.
    """

    use_peft: bool = field(default=False, metadata={"help": "train an adapter (LoRA), saved without its base"})
    lora_r: int = field(default=16, metadata={"help": "rank"})
    lora_alpha: int = field(default=32, metadata={"help": "the update is multiplied by lora_alpha / lora_r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout of LoRA's input"})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "endings of module names, or all-linear; default: linear layers of the language model"},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules trained in full; default: everything outside the backbone"}
    )
    use_rslora: bool = field(default=False, metadata={"help": "scale by lora_alpha / sqrt(lora_r)"})
    use_dora: bool = field(default=False, metadata={"help": "learn magnitude and direction separately"})
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
        """Return keyword arguments for loading the policy.

        Args:
            policy: `PolicyArguments`.
            args: `VLATrainingArguments`.

        Raises:
            ValueError: settings that can't be used together.
            ImportError: bitsandbytes is needed but not installed.
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


__all__ = ["PeftArguments"]
