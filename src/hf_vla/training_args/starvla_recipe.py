"""StarVLA's training configurations as recipes of `hf-vla train` (StarVLA's semantics, sections 3, 8 and 9)."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..checkpoints.starvla import check_tree, hub_name
from ..checkpoints.starvla_mapping import lookup
from ..checkpoints.starvla_robots import ACTION_MODES
from ..data.mixture_files import mixture_names, read_mixture
from ..registry import class_of, starvla_frameworks, starvla_mapping
from ..robots.robot_types import RobotType, known_robot
from .starvla_modules import module_pattern
from .starvla_recipe_notes import LEFT_OUT
from .starvla_tree import Tree, resolve

_MODES = ("q99", "min_max", "mean_std")


@dataclass
class ConvertedRecipe:
    """The recipe made of a StarVLA configuration, and what is not in it.

    Attributes:
        settings: the recipe.
        notes: dotted key → why it is not in the recipe, or what is different there.
        unknown: dotted keys that neither side is known to read.
        values: the values of the keys in `notes` and `unknown`, if the file has them.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def report(self) -> list[str]:
        """Return one line per note and unknown key."""
        lines = [f"{self._named(key)}: {note}" for key, note in self.notes.items()]
        return lines + [f"{self._named(key)}: unknown, left out" for key in self.unknown]

    def as_yaml(self, source: str) -> str:
        """Return the recipe as a YAML file, with the report as comments."""
        launch = "StarVLA starts it under ZeRO-2: hf-vla train RECIPE --launch zero2"
        comments = [f"Made of StarVLA's {source}. {launch}", *self.report()]
        text = "".join(f"# {line}\n" for line in comments)
        return text + yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True, width=120)

    def _named(self, key: str) -> str:
        if key not in self.values:
            return key
        value = " ".join(str(self.values[key]).split())
        return f"{key} ({value[:57] + '...' if len(value) > 60 else value})"


def convert_recipe(content: Any, source: str = "the file", vlm_dataset: list[str] | None = None) -> ConvertedRecipe:
    """Return the recipe that trains in the way that a StarVLA configuration describes.

    Args:
        content: the content of the YAML file.
        source: the file's name, for errors.
        vlm_dataset: files in LLaVA's JSON format to co-train with, as StarVLA's co-training script does; the configuration
            refers to them by names in StarVLA's code.

    Raises:
        ValueError: not a StarVLA configuration, an unknown framework, or an impossible value.
    """
    if not isinstance(content, dict) or "framework" not in content:
        raise ValueError(f"{source} is not a StarVLA training configuration: it has no key 'framework'")
    plain = resolve(content)
    check_tree(plain, source)
    tree, of_others = Tree(plain), Tree(plain)
    name = tree["framework"]["name"]
    found = ConvertedRecipe()
    _run(tree, found)
    model_type = _policy(tree, found)
    _data(tree, found, vlm_dataset)
    _modules(tree, found, model_type)
    _optimisation(tree, found)
    leaves = tree.leaves()
    for other in starvla_frameworks().values():
        try:
            starvla_mapping(other).to_config(of_others)
        except (ValueError, TypeError):
            pass  # this run has another framework
    for key, value in leaves.items():
        if key in tree.read and key not in found.notes:
            continue
        found.values[key] = value
        if key in found.notes:
            continue
        if (reason := _left_out(key)) is not None:
            found.notes[key] = reason
        elif key in of_others.read:
            found.notes[key] = f"{name} does not read it"
        else:
            found.unknown.append(key)
    return found


def _run(tree: Tree, found: ConvertedRecipe) -> None:
    root, run = tree.get("run_root_dir") or "results", tree.get("run_id") or "starvla"
    found.settings["output_dir"] = f"{str(root).rstrip('/')}/{run}"
    if "seed" in tree:
        found.settings["seed"] = int(tree["seed"])
    trackers = tree.get("trackers", ["wandb"])
    if "wandb" in trackers:
        found.settings |= {"report_to": ["wandb"], "run_name": str(run)}
        found.notes["report_to"] = "wandb, as StarVLA; it needs pip install wandb, and WANDB_PROJECT and WANDB_ENTITY"


def _policy(tree: Tree, found: ConvertedRecipe) -> str:
    model_type = starvla_frameworks()[tree["framework"]["name"]]
    config_class = class_of(model_type, "config")
    fields = starvla_mapping(model_type).to_config(tree)
    given = lookup(tree, "framework.action_model") or {}
    for name in ("action_dim", "state_dim"):
        if name not in given:
            fields.pop(name)  # the data tell
    always = ("action_dim", "state_dim", "action_horizon", "repeated_diffusion_steps")
    config = {n: v for n, v in fields.items() if n in always or v != getattr(config_class, n, object())}
    backbone = lookup(tree, "framework.qwenvl.base_vlm")
    if not backbone:
        raise ValueError("framework.qwenvl.base_vlm is missing: it names the backbone")
    found.settings |= {"framework": model_type, "base_vlm": hub_name(backbone), "policy_config": config}
    if hub_name(backbone) != backbone:
        found.notes["framework.qwenvl.base_vlm"] = f"taken for {hub_name(backbone)} of the Hub"
    return model_type


def _data(tree: Tree, found: ConvertedRecipe, vlm_dataset: list[str] | None) -> None:
    data = lookup(tree, "datasets.vla_data")
    if not isinstance(data, dict) or not data.get("data_mix"):
        raise ValueError("datasets.vla_data.data_mix is missing: it names the mixture to train on")
    settings = found.settings
    settings["mixture"] = str(data["data_mix"])
    if root := data.get("data_root_dir"):
        settings["data_root"] = str(root)
    robots = _robots(settings["mixture"], found)
    # StarVLA's loader resizes to 224 x 224 unless the file says otherwise.
    settings["image_size"] = list(data.get("obs_image_size") or data.get("image_size") or (224, 224))
    if prompt := data.get("CoT_prompt"):
        settings["prompt_template"] = prompt
    elif "CoT_prompt" in data:
        found.notes["datasets.vla_data.CoT_prompt"] = "empty, with which StarVLA leaves out the instruction; we don't"
    settings["use_state"] = str(data.get("include_state", False)).lower() == "true"
    mode = data.get("normalization_modes")
    if mode is not None and robots:
        found.notes["datasets.vla_data.normalization_modes"] = (
            "the mixture's robot types say how each dimension is normalised"
        )
    elif mode in _MODES:
        settings |= {"action_normalization": mode, "state_normalization": mode}
    elif mode is not None:
        found.notes["datasets.vla_data.normalization_modes"] = f"modes are {', '.join(_MODES)}, for all dimensions"
    _action_mode(data, found, robots)
    settings["balance_by_size"] = bool(data.get("balance_dataset_weights", False))
    settings["per_device_train_batch_size"] = int(data.get("per_device_batch_size", 16))
    settings["dataloader_num_workers"] = workers = int(data.get("num_workers", 4))
    settings["dataloader_pin_memory"] = bool(data.get("pin_memory", True))
    persistent, ahead = data.get("persistent_workers", True), data.get("prefetch_factor", 2)
    if workers:
        settings |= {"dataloader_persistent_workers": bool(persistent), "dataloader_prefetch_factor": int(ahead)}
    if vlm_dataset:
        settings["vlm_dataset"] = list(vlm_dataset)
        batch = lookup(tree, "datasets.vlm_data.per_device_batch_size")
        settings["vlm_per_device_train_batch_size"] = int(batch or settings["per_device_train_batch_size"])
        settings["vlm_loss_scale"] = float(lookup(tree, "trainer.loss_scale.vlm", 0.1))
        found.notes["datasets.vlm_data.dataset_use"] = "a name in StarVLA's code; the given files take its place"
    elif lookup(tree, "datasets.vlm_data") is not None:
        found.notes["datasets.vlm_data"] = (
            "read by StarVLA's co-training script alone; to co-train, convert again with --vlm-dataset FILE.json"
        )


def _robots(mixture: str, found: ConvertedRecipe) -> list[RobotType]:
    """Return the robot types of a mixture, or an empty list if the mixture or one of them is unknown."""
    if mixture not in mixture_names():
        found.notes["datasets.vla_data.data_mix"] = (
            f"not a mixture of ours ({', '.join(mixture_names())}); write its datasets into a YAML file, see docs/data.md, and "
            "name that"
        )
        return []
    robots = [known_robot(name) for name in sorted({entry["robot"] for entry in read_mixture(mixture)})]
    return [] if None in robots else robots


def _action_mode(data: Tree, found: ConvertedRecipe, robots: list[RobotType]) -> None:
    """Convert what actions are made relative to, and the keys that stay absolute.

    StarVLA pairs keys of the action with keys of the state, by name or by `action_mode_state_map`; a key without a partner
    stays absolute. Here dimension d of the action belongs to dimension d of the state.
    """
    # StarVLA, too, takes any other word for "abs".
    mode = ACTION_MODES.get(str(data.get("action_mode") or "abs").lower(), "stored")
    chosen = {str(key).removeprefix("action.") for key in data.get("action_mode_apply_keys") or ()}
    mapped = data.get("action_mode_state_map") or {}
    partners = {key.removeprefix("action."): str(mapped[key]).removeprefix("state.") for key in mapped}
    if mode == "stored":
        given = [key for key in ("action_mode_apply_keys", "action_mode_state_map") if data.get(key)]
        found.notes |= {
            f"datasets.vla_data.{key}": "without action_mode delta or rel it has no meaning" for key in given
        }
        return
    found.settings["action_mode"] = mode
    layouts = {(tuple(robot.action.keys.items()), tuple(robot.state.keys.items())) for robot in robots}
    if len(layouts) != 1:
        found.notes["datasets.vla_data.action_mode_apply_keys"] = (
            "the keys' dimensions are not known; name those of the other keys by absolute_dims"
        )
        return
    action, state = robots[0].action, robots[0].state
    absolute, misplaced = [], []
    for key in action.keys:
        partner = partners.get(key, key)
        if partner not in state.keys or (chosen and key not in chosen):
            absolute.append(key)
        elif action.indices([key]) != state.indices([partner]):
            misplaced.append(f"{key} and {partner}")
    found.settings["absolute_dims"] = list(action.indices(absolute))
    if misplaced:
        found.notes["datasets.vla_data.action_mode_state_map"] = (
            f"dimension d of the action is made relative to dimension d of the state, and {', '.join(misplaced)} lie elsewhere: "
            "arrange the state by a column mapping, see docs/data.md"
        )


def _modules(tree: Tree, found: ConvertedRecipe, model_type: str) -> None:
    """Convert frozen modules, learning rates and what is loaded first."""

    def patterns(key: str) -> list[str]:
        value = lookup(tree, key)
        names = value if isinstance(value, list) else (value or "").split(",") if isinstance(value, str | None) else []
        pairs = [(path, module_pattern(path, model_type)) for path in (str(n).strip() for n in names) if path]
        if missing := [path for path, pattern in pairs if pattern is None]:
            found.notes[key] = f"there is no {', '.join(missing)} in {model_type}; StarVLA ignores such names"
        return [pattern for _, pattern in pairs if pattern is not None]

    if frozen := patterns("trainer.freeze_modules"):
        found.settings["freeze_modules"] = frozen
    rates = lookup(tree, "trainer.learning_rate", {})
    if not isinstance(rates, dict):
        rates = {"base": rates}
    found.settings["learning_rate"] = float(rates.get("base", 1e-4))
    ours = {}
    for path in [path for path in rates if path != "base"]:
        key, pattern = f"trainer.learning_rate.{path}", module_pattern(path, model_type)
        rate = float(rates[path])
        if pattern is None:
            found.notes[key] = f"there is no {path} in {model_type}; StarVLA ignores such names"
        elif pattern in frozen:
            found.notes[key] = "the module is frozen"
        else:
            ours[pattern] = rate
    if ours:
        found.settings["module_learning_rates"] = ours
    if checkpoint := lookup(tree, "trainer.pretrained_checkpoint"):
        # …/RUN/checkpoints/steps_N_pytorch_model.pt: the policy is the run's folder.
        found.settings["pretrained_checkpoint"] = re.sub(r"/(checkpoints|final_model)/[^/]+$", "", str(checkpoint))
        if found.settings["pretrained_checkpoint"] != checkpoint:
            found.notes["trainer.pretrained_checkpoint"] = (
                "the run's folder is named, of which the highest step counts"
            )
        if reloaded := patterns("trainer.reload_modules"):
            found.settings["reload_modules"] = reloaded


def _optimisation(tree: Tree, found: ConvertedRecipe) -> None:
    trainer = lookup(tree, "trainer", {})
    optimizer, settings = lookup(tree, "trainer.optimizer", {}), found.settings
    for theirs, ours, kind in (
        ("max_train_steps", "max_steps", int),
        ("num_warmup_steps", "warmup_steps", int),
        ("gradient_clipping", "max_grad_norm", float),
        ("logging_frequency", "logging_steps", int),
        ("save_interval", "save_steps", int),
    ):
        if trainer.get(theirs) is not None:
            settings[ours] = kind(trainer[theirs])
    if scheduler := trainer.get("lr_scheduler_type"):
        settings["lr_scheduler_type"] = str(scheduler)
        options = trainer.get("scheduler_specific_kwargs") or {}
        if options and not scheduler.startswith("constant"):
            settings["lr_scheduler_kwargs"] = {name: options[name] for name in options}
        if "min_lr" in options and scheduler == "cosine_with_min_lr" and "module_learning_rates" in settings:
            found.notes["trainer.scheduler_specific_kwargs.min_lr"] = (
                "here every group ends at it; StarVLA's groups end at it times their rate over the base rate"
            )
    name = str(optimizer.get("name", "AdamW"))
    if name.lower() != "adamw":
        raise ValueError(f"trainer.optimizer.name is {name!r}; StarVLA's trainer knows AdamW only")
    beta1, beta2 = optimizer.get("betas", (0.9, 0.999))
    settings |= {"adam_beta1": float(beta1), "adam_beta2": float(beta2)}
    for theirs, ours in (("eps", "adam_epsilon"), ("weight_decay", "weight_decay")):
        if optimizer.get(theirs) is not None:
            settings[ours] = float(optimizer[theirs])
    # StarVLA computes in bfloat16 whatever the file says.
    settings["bf16"] = True
    checkpointing = [trainer.get(name) for name in ("enable_gradient_checkpointing", "gradient_checkpointing")]
    settings["activation_checkpointing"] = any(checkpointing)
    if (scale := lookup(tree, "trainer.loss_scale.vla", 1.0)) != 1:
        found.notes["trainer.loss_scale.vla"] = (
            f"the action loss has weight 1; scale learning rates by {scale} instead"
        )


def _left_out(key: str) -> str | None:
    """Return why a key of StarVLA's is left out, from the longest path in `LEFT_OUT` that contains it, or None."""
    parts = key.split(".")
    paths = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((LEFT_OUT[path] for path in paths if path in LEFT_OUT), None)


__all__ = ["ConvertedRecipe", "convert_recipe"]
