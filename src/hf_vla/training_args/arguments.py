"""`VLATrainingArguments`: transformers' `TrainingArguments` and what policies need beside them."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class VLATrainingArguments(TrainingArguments):
    r"""
    Arguments of [`VLATrainer`]; everything of [`transformers.TrainingArguments`] is there too.

    Parameters that control what is trained, and how fast:
        module_learning_rates (`dict[str, float]`, *optional*):
            Regular expression -> learning rate. A parameter takes the rate of the first pattern that `re.search` finds in
            its name, else `learning_rate`. A pattern that matches no parameter is an error.
        freeze_modules (`list[str]`, *optional*):
            Regular expressions; parameters in whose names one is found are not trained.

    Parameters that control where training starts:
        pretrained_checkpoint (`str`, *optional*):
            A policy (folder or Hub repository, in this format or StarVLA's) whose weights are loaded first.
        reload_modules (`list[str]`, *optional*):
            Regular expressions; of `pretrained_checkpoint`, only matching parameters are loaded.

    Parameters that control the loss:
        vlm_loss_scale (`float`, *optional*, defaults to 0.1):
            Weight of the language-model loss in co-training.

    With `lr_scheduler_type="cosine_with_min_lr"`, every parameter group ends at `lr_scheduler_kwargs["min_lr"]` itself.
    """

    _VALID_DICT_FIELDS = TrainingArguments._VALID_DICT_FIELDS + ["module_learning_rates"]

    module_learning_rates: dict | str | None = field(
        default=None, metadata={"help": "regex -> learning rate, first match wins"}
    )
    freeze_modules: list[str] | None = field(
        default=None, metadata={"help": "regexes of the parameters that are not trained"}
    )
    pretrained_checkpoint: str | None = field(
        default=None, metadata={"help": "policy (folder or Hub repository) whose weights are loaded first"}
    )
    reload_modules: list[str] | None = field(
        default=None, metadata={"help": "regexes: which of pretrained_checkpoint's parameters are loaded; default all"}
    )
    vlm_loss_scale: float = field(default=0.1, metadata={"help": "weight of the language-model loss in co-training"})
    # The collator reads the raw columns.
    remove_unused_columns: bool = field(default=False, metadata={"help": "kept False: the collator needs all columns"})

    def __post_init__(self):
        super().__post_init__()
        for name in ("freeze_modules", "reload_modules"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is the string {getattr(self, name)!r}; give a list of regular expressions")
        if self.module_learning_rates is not None and not isinstance(self.module_learning_rates, dict):
            raise ValueError(
                f"module_learning_rates is {self.module_learning_rates!r}; give a mapping from regular expressions to rates"
            )
        rates = {str(pattern): float(rate) for pattern, rate in (self.module_learning_rates or {}).items()}
        if bad := [pattern for pattern, rate in rates.items() if not rate >= 0]:
            raise ValueError(f"module_learning_rates of {bad} must be 0 or more")
        self.module_learning_rates = rates or None
        if self.reload_modules and not self.pretrained_checkpoint:
            raise ValueError("reload_modules says what to take from pretrained_checkpoint, which is not set")
        if self.vlm_loss_scale < 0:
            raise ValueError(f"vlm_loss_scale is {self.vlm_loss_scale}; it must be 0 or more")
        if self.label_names is None:
            self.label_names = ["actions"]


__all__ = ["VLATrainingArguments"]
