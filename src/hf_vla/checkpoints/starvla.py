"""Reading StarVLA's native run folders and Hub repositories (StarVLA's semantics, section 1).

How a framework's configuration and tensors map to ours is in its folder, see
[`~hf_vla.checkpoints.starvla_mapping`]; writing is in [`~hf_vla.checkpoints.starvla_writer`].
"""

import copy
import re
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from transformers.utils import logging

from ..hub import SHARED_HUB_KWARGS, hub_options
from ..registry import class_of, starvla_frameworks, starvla_mapping
from ..robots.normalization import Normalizer
from ..robots.robot_types import RobotType
from .checkpoint import Checkpoint, Files
from .starvla_mapping import StarVLAMapping, lookup
from .starvla_robots import flat_statistics, input_contract, robots_of, uses_state
from .weights import load_tensors

logger = logging.get_logger(__name__)

CONFIG_FILES = ("config.full.yaml", "config.yaml")
STATISTICS_FILE = "dataset_statistics.json"
#: Options for native checkpoints only, see `open_checkpoint`
NATIVE_KWARGS = ("base_vlm", "checkpoint", "fast_tokenizer")
#: Options that say what a native checkpoint does not, of its processor and of its model: either takes the other's, too, so that
#: one set of options loads both.
OF_PROCESSOR, OF_MODEL = ("robot_type", "unnormalization"), ("interleave_self_attention",)
#: Leaves of the YAML that all frameworks read -> (type, its description in errors)
_LEAVES = {
    "framework.action_model": (dict, "a mapping"),
    "framework.action_model.diffusion_model_cfg": (dict | None, "a mapping"),
    "framework.qwenvl.base_vlm": (str | None, "a path or repository"),
    "datasets.vla_data.CoT_prompt": (str | None, "a text"),
    "datasets.vla_data.obs_image_size": (list | None, "[width, height]"),
}
_CHECKPOINT = re.compile(r"(?:^|/)steps_(\d+)_(pytorch_model\.pt|model\.safetensors)$")
_FINAL = re.compile(r"(?:^|/)final_model/(pytorch_model\.pt|model\.safetensors)$")


def check_tree(tree, file) -> None:
    """Raise a ValueError if the YAML names no framework that is known, or a leaf that is read is of another type."""
    known = starvla_frameworks()
    if (name := lookup(tree, "framework.name")) is None:
        raise ValueError(
            f"{file} names no framework as StarVLA's configurations do (framework.name), and there is no config.json beside it: "
            "this is not a policy's folder, or the training in it has not finished"
        )
    if name not in list(known):
        raise ValueError(f"{file} names the framework {name!r}; known are {', '.join(known)}")
    for path, (kind, what) in (_LEAVES | starvla_mapping(known[name]).leaves).items():
        value = lookup(tree, path, {} if kind is dict else None)
        pair = not isinstance(value, list) or (len(value) == 2 and all(isinstance(x, int) and x > 0 for x in value))
        if not isinstance(value, kind) or not pair:
            raise ValueError(f"{path} is {value!r:.80} in {file}; it must be {what}, or be left out")


#: How names of backbones begin, without upper case -> their owner on the Hub. Those of Qwen are the others.
_OWNERS = {"gemma-4": "google", "cosmos-reason2": "nvidia"}


def hub_name(base_vlm: str) -> str:
    """Return a backbone's folder or repository.

    Released configurations hold a path on the author's disk; the owner on the Hub follows from its last part.
    """
    if Path(base_vlm).is_dir() or re.fullmatch(r"\w[\w.-]*/[\w.-]+", base_vlm):
        return base_vlm
    name = base_vlm.rstrip("/").split("/")[-1]
    if name.endswith("-Action"):
        return f"StarVLA/{name}"
    return next(
        (f"{owner}/{name}" for start, owner in _OWNERS.items() if name.lower().startswith(start)), f"Qwen/{name}"
    )


def _spellings(name: str) -> list[str]:
    """Return a repository's name as given, then with the other spelling that StarVLA's own pages use for `…-RT-1`."""
    for old, new in (("RT-1", "RT_1"), ("RT_1", "RT-1")):
        if name.endswith(old):
            return [name, name.removesuffix(old) + new]
    return [name]


class StarVLACheckpoint(Checkpoint):
    """A native run folder, or a Hub repository in its layout."""

    is_native = True

    @classmethod
    def find(cls, files: Files, **options) -> "StarVLACheckpoint | None":
        """Return the checkpoint in these files, or None if they are not a native one.

        Raises:
            OSError: a run folder without its configuration.
        """
        if files.folder is None:
            for spelling in _spellings(files.name):
                found = Files(spelling, **files.hub)
                # A configuration of ours makes it a checkpoint of ours.
                if spelling != files.name and found.find("config.json") is not None:
                    return None
                if any(found.find(name) for name in CONFIG_FILES):
                    if spelling != files.name:
                        logger.warning(
                            f"{files.name} is not known; loading {spelling}, as the repository is also spelled"
                        )
                    return cls(found, **options)
            return None
        config = next(filter(None, map(files.find, CONFIG_FILES)), None)
        if config is not None:
            # Somebody else's config.yaml has no framework, for example that of a training run that is under way.
            is_native = re.search(r"^framework:", config.read_text(encoding="utf-8"), re.MULTILINE)
            return cls(files, **options) if is_native else None
        if files.find(STATISTICS_FILE) or (files.folder / "checkpoints").is_dir():
            raise OSError(
                f"{files.folder} looks like a StarVLA run folder, but holds neither {' nor '.join(CONFIG_FILES)}; "
                "copy the run's configuration into it"
            )
        return None

    @cached_property
    def _config_file(self) -> Path:
        return next(filter(None, map(self.files.find, CONFIG_FILES)))

    @cached_property
    def tree(self) -> dict:
        """The run's configuration: `config.full.yaml`, else `config.yaml`.

        Raises:
            OSError: it is not valid YAML, names an unknown framework, or holds a value of another type.
        """
        try:
            tree = yaml.safe_load(self._config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise OSError(f"{self._config_file} is not valid YAML: {error}") from error
        try:
            check_tree(tree, self._config_file)
        except ValueError as error:
            raise OSError(str(error)) from error
        return tree

    @property
    def model_type(self) -> str:
        return starvla_frameworks()[self.tree["framework"]["name"]]

    @property
    def processor_class(self) -> str:
        return self._class("processor").__name__

    @property
    def mapping(self) -> StarVLAMapping:
        """How StarVLA's framework maps to ours."""
        return starvla_mapping(self.model_type)

    @property
    def base_vlm(self) -> str:
        """The backbone's folder or repository, as the run's configuration names it."""
        name = lookup(self.tree, "framework.qwenvl.base_vlm")
        if not name:
            raise OSError(f"the configuration of {self.name} names no framework.qwenvl.base_vlm; pass base_vlm=")
        return hub_name(name)

    def _class(self, kind: str) -> type:
        return class_of(self.model_type, kind)

    @property
    def backbone_source(self) -> tuple[str, dict]:
        """Where the backbone's configuration and processor are loaded from, and Hub options for it."""
        return self.options.get("base_vlm") or self.base_vlm, hub_options(self.files.hub, SHARED_HUB_KWARGS)

    # -------------------------------------------------------- configuration

    @cached_property
    def vlm_config(self):
        from transformers import AutoConfig

        base, hub = self.backbone_source
        try:
            vlm_config = AutoConfig.from_pretrained(base, **hub)
        except OSError as error:
            raise OSError(
                f"{self.name} needs the configuration of its backbone, and {base} can't be loaded; pass base_vlm= with a "
                f"folder or repository that holds the backbone's config, tokenizer and image processor ({error})"
            ) from error
        vlm_config.name_or_path = self.base_vlm  # not where this machine keeps it
        return vlm_config

    @cached_property
    def _tokenizer(self):
        from transformers import AutoTokenizer

        base, hub = self.backbone_source
        return AutoTokenizer.from_pretrained(base, **hub)

    @cached_property
    def fields(self) -> dict:
        """The fields of the policy's configuration that the YAML gives."""
        try:
            return self.mapping.to_config(self.tree)
        except (TypeError, ValueError) as error:
            raise OSError(f"the configuration of {self.name} can't be read: {error}") from error

    @cached_property
    def _loaded_settings(self) -> dict:
        """The processor's settings that have files of their own."""
        return self._load_settings({})

    def _load_settings(self, given: dict) -> dict:
        given = {"fast_tokenizer": self.options.get("fast_tokenizer"), **given}
        return self._class("processor").load_settings(given, self.files.find, **self.backbone_source[1])

    def config(self, config_class=None, return_unused_kwargs=False, **kwargs):
        """Return the policy's configuration; fields in `kwargs` override it.

        With `return_unused_kwargs`, return those of `kwargs` that are not fields, too.

        Raises:
            ValueError: `config_class` is another framework's.
            OSError: the YAML asks for what is not supported, or the backbone's configuration is not found.
        """
        own_class = self._class("config")
        if config_class is not None and not issubclass(own_class, config_class):
            raise ValueError(
                f"{self.name} holds a {self.tree['framework']['name']} policy ({own_class.__name__}), "
                f"not one of {config_class.__name__}"
            )
        of_tokenizer = self._class("processor").native_config_fields(lambda: self._tokenizer, self._loaded_settings)
        fields = {"vlm_config": copy.deepcopy(self.vlm_config), **self.fields, **of_tokenizer}
        unused = {}
        for name, value in kwargs.items():
            if name in OF_PROCESSOR:
                continue
            is_field = name in own_class.__dataclass_fields__ and (name, value) != ("dtype", "auto")
            (fields if is_field else unused)[name] = value
        if self.mapping.ignored_interleave and "interleave_self_attention" not in kwargs:
            fields["interleave_self_attention"] = self._interleaves()
        config = own_class(**{"vlm_name_or_path": self.base_vlm, "architectures": None, **fields})
        config.name_or_path = self.name
        return (config, unused) if return_unused_kwargs else config

    def attention(self) -> tuple[bool, str, bool]:
        """Return whether odd blocks of the head attend the action-side tokens, why, and whether that is certain.

        Before 2026-06-16 StarVLA did not read `interleave_self_attention`; `use_canonical_forward` has always counted.
        """
        flag = self.fields["interleave_self_attention"]
        diffusion = "framework.action_model.diffusion_model_cfg"
        if lookup(self.tree, f"{diffusion}.use_canonical_forward") is not None:
            return flag, "its use_canonical_forward says so", True
        given = lookup(self.tree, f"{diffusion}.interleave_self_attention") is not None
        said = f"its interleave_self_attention is {str(flag).lower()}" if given else "the default of its framework"
        if not self.mapping.ignored_interleave:
            return flag, said, True
        released = yaml.safe_load(files("hf_vla.checkpoints").joinpath("released.yaml").read_text(encoding="utf-8"))
        if self.files.folder is not None:  # a repository that was downloaded into a folder of its name
            released = {repository.split("/")[1]: trained for repository, trained in released.items()}
        name = self.files.name if self.files.folder is None else self.files.folder.name
        known = next((released[spelling] for spelling in _spellings(name) if spelling in released), None)
        if known is not None:
            return known, "this released checkpoint was trained so", True
        return flag, said, given and not flag

    def _interleaves(self) -> bool:
        """Whether blocks of a layer-wise head attend the action-side tokens; what may be otherwise is logged."""
        (trained, _, certain), flag = self.attention(), self.fields["interleave_self_attention"]
        if flag and not certain:
            logger.warning_once(
                f"{self.name} says interleave_self_attention, which StarVLA did not read before 2026-06-16: if it was trained "
                "before, load it with interleave_self_attention=False; if after, with interleave_self_attention=True, which "
                "is what is assumed now"
            )
        if trained != flag:
            logger.warning_once(
                f"{self.name} says interleave_self_attention={flag}, but was trained with {trained}, which is used; to choose "
                "otherwise, pass interleave_self_attention="
            )
        return trained

    # ------------------------------------------------------------ processor

    def processor(
        self, processor_class=None, image_processor_config: dict | None = None, robot_type=None, **overrides
    ):
        """Return the policy's processor: the backbone's tokenizer and image processor, the run's prompt, image size, statistics.

        Args:
            processor_class: the class that is asked for.
            image_processor_config: fields of the image processor to change.
            robot_type: as for [`~hf_vla.checkpoints.starvla_robots.robots_of`].
            overrides: settings of the processor.

        Raises:
            ValueError: `processor_class` is another framework's, or a setting has no possible value.
            OSError: files are missing or broken.
        """
        if image_processor_config:
            image_processor_config = {n: x for n, x in image_processor_config.items() if n not in OF_MODEL}
        own_class = self._class("processor")
        if processor_class is not None and not issubclass(own_class, processor_class):
            raise ValueError(f"{self.name} needs {own_class.__name__}, not {processor_class.__name__}")
        settings = {
            **self.settings(robot_type, overrides),
            **(self._load_settings(overrides) if overrides else self._loaded_settings),
        }
        base, hub = self.backbone_source
        return own_class.from_backbone(base, self.vlm_config, settings | overrides, image_processor_config, **hub)

    def settings(self, robot_type=None, overrides: Mapping | None = None) -> dict:
        """Return the processor's settings that the run's own files give: prompt, image size, statistics, robot types.

        `robot_type` and `overrides` as for `processor`.
        """
        settings = {
            "prompt_template": lookup(self.tree, "datasets.vla_data.CoT_prompt"),
            "image_size": self.mapping.image_size(self.tree),
            **{name: self.fields[name] for name in self._class("processor").config_settings},
        }
        if "statistics" in (overrides or {}):  # whose robot types are the caller's matter
            return settings | {"input_contract": input_contract(self.tree, {}, self._reads_state)}
        return settings | self._robots(robot_type, self.fields["action_dim"], overrides or {})

    def robots(self, robot_type=None) -> tuple[dict[str, RobotType | None], str]:
        """Return the robot type of each statistics key, None where it is not known, and why; `robot_type` as for `processor`."""
        return robots_of(self.tree, sorted(self._statistics), robot_type)

    def _robots(self, robot_type, action_dim: int, overrides: Mapping) -> dict:
        """The processor's settings that the run's statistics and robot types make."""
        statistics, (robots, why) = self._statistics, self.robots(robot_type)
        statistics = flat_statistics(statistics, self.tree, robots)
        said = set(overrides.get("normalization_modes") or {})
        modes = {key: robot.modes(statistics[key], key) for key, robot in robots.items() if robot and key not in said}
        unknown = sorted(set(statistics) - set(modes) - said)
        if unknown:
            logger.warning(
                f"{self.name} was trained on {', '.join(unknown)}, of which the robot type, and so the normalisation, is not "
                f"known: {why}. It predicts in normalised units; name the robot type with robot_type= to un-normalise its actions"
            )
        return {
            "statistics": statistics,
            "normalization_modes": modes,
            "normalization_options": {key: options for key in modes if (options := robots[key].options())},
            "robot_types": {key: robot and robot.name for key, robot in robots.items()},
            "action_names": {key: names for key in modes if len(names := robots[key].action.names) == action_dim},
            "input_contract": input_contract(
                self.tree, robots, self._reads_state, self._unfit_states(statistics, robots, modes)
            ),
        }

    def _unfit_states(self, statistics: Mapping, robots: Mapping, modes: Mapping) -> list[str]:
        """Return the keys whose states, as normalised, do not have the dimensions that the action head reads; it is logged."""
        if self._class("config").state_input != "head" or not uses_state(self.tree):
            return []
        unfit = []
        for key in modes:
            if not modes[key].get("state"):
                continue
            normalizer = Normalizer(statistics[key]["state"], modes[key]["state"], **robots[key].options())
            if normalizer.encoded_dim != self.fields["state_dim"]:
                logger.warning_once(
                    f"{self.name} reads states of {self.fields['state_dim']} dimensions (state_dim), and those of {key!r} have "
                    f"{normalizer.encoded_dim}: no state in robot units fits, so none is required"
                )
                unfit.append(key)
        return unfit

    @property
    def _reads_state(self) -> bool:
        """Whether the policy reads the robot's state: QwenFAST never does, a head without a state encoder neither."""
        state_input = self._class("config").state_input
        return state_input == "prompt" or (state_input == "head" and self.fields["state_dim"] > 0)

    @cached_property
    def _statistics(self) -> dict:
        statistics = self.files.read_json(STATISTICS_FILE)
        if statistics is None:
            raise OSError(
                f"{self.name} holds no {STATISTICS_FILE}, without which its actions have no units; copy it from the training "
                "run, or pass statistics= to AutoProcessor.from_pretrained"
            )
        return statistics

    # -------------------------------------------------------------- weights

    def weights_file(self) -> Path:
        """Return the file that `checkpoint=` names, else the one of the highest step, else the final model's.

        A name is looked for in the repository first; a path outside of it is taken if there is no such file in it.

        Raises:
            OSError: there is no such file.
        """
        name, others = self.weights_name()
        if name is None:
            logger.warning(f"{self.name}: loading {self.options['checkpoint']}")
            return Path(self.options["checkpoint"])
        path = self.files.find(name)
        if path is None:
            raise OSError(f"{self.name}: {name} could not be downloaded")
        logger.warning(f"{self.name}: loading {name}" + (f" of {others + 1}" if others else ""))
        return path

    def weights_name(self) -> tuple[str | None, int]:
        """Return the path in the repository of what `weights_file` returns, None if it is outside, and how many others there are.

        Raises:
            OSError: there is no such file.
        """
        files, name = self.files.list(self._config_file), self.options.get("checkpoint")
        steps = {file: int(match[1]) for file in files if (match := _CHECKPOINT.search(file))}
        finals = [file for file in files if _FINAL.search(file)]
        if name is not None:
            wanted = [file for file in [*steps, *finals] if file == str(name) or file.endswith(f"/{name}")]
            if not wanted and Path(name).is_file():
                return None, 0
        else:
            # Of two formats of one step, "…model.safetensors" sorts before "…pytorch_model.pt".
            wanted = sorted(steps, key=lambda file: (-steps[file], file)) or sorted(finals)
        if not wanted:
            found = ", ".join([*sorted(steps, key=steps.get), *finals]) or "none"
            raise OSError(
                f"{self.name} holds no checkpoint{'' if name is None else f' {name}'}; expected "
                f"checkpoints/steps_N_pytorch_model.pt, steps_N_model.safetensors or final_model/pytorch_model.pt, found {found}"
            )
        return wanted[0], max(len(steps) - 1, 0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors under our names, memory-mapped."""
        return self.mapping.convert(load_tensors(self.weights_file()), to_starvla=False)


__all__ = ["CONFIG_FILES", "NATIVE_KWARGS", "STATISTICS_FILE", "StarVLACheckpoint", "check_tree", "hub_name"]
