"""StarVLA's native run folders and Hub repositories: finding and reading them (StarVLA's semantics, section 1).

transformers' Auto classes see them through [`~hf_vla.auto`]; writing is
[`~hf_vla.checkpoints.starvla_writer`].
"""

import functools
import json
import os
import re
from pathlib import Path

import torch
import yaml
from huggingface_hub import is_offline_mode
from transformers.utils import logging

from ..hub import HUB_KWARGS, hub_file
from ..registry import class_of, starvla_frameworks, starvla_mapping
from .run_config import check_tree, hub_name
from .starvla_mapping import StarVLAMapping, lookup
from .weights import load_tensors

logger = logging.get_logger(__name__)

CONFIG_FILES = ("config.full.yaml", "config.yaml")
STATISTICS_FILE = "dataset_statistics.json"
NATIVE_KWARGS = ("base_vlm", "checkpoint", "fast_tokenizer")
_CHECKPOINT = re.compile(r"(?:^|/)steps_(\d+)_(pytorch_model\.pt|model\.safetensors)$")
_FINAL = re.compile(r"(?:^|/)final_model/(pytorch_model\.pt|model\.safetensors)$")


def pop_native_kwargs(kwargs: dict) -> dict:
    """Take the arguments that only native checkpoints know out of `kwargs`."""
    return {name: kwargs.pop(name) for name in NATIVE_KWARGS if name in kwargs}


def refuse_native_kwargs(native_kwargs: dict, source) -> None:
    """Raise where such arguments were given for a checkpoint that is not native."""
    if given := [name for name, value in native_kwargs.items() if value is not None]:
        raise ValueError(
            f"{source} is no native StarVLA checkpoint (it has its own config.json, or none of "
            f"{' and '.join(CONFIG_FILES)}); {', '.join(given)} can't be used with it"
        )


def find_repository(name_or_path, **kwargs) -> "StarVLARepository | None":
    """The native run folder or Hub repository of that name, or None where it is none.

    Args:
        name_or_path: a run folder, or a Hub repository.
        kwargs: Hub options (`revision`, `token`, `cache_dir`, …); others are not read.

    Raises:
        OSError: a run folder without its configuration.
    """
    path = Path(name_or_path)
    if path.is_dir():
        if (path / "config.json").exists() or (path / "processor_config.json").exists():
            return None
        configs = [path / name for name in CONFIG_FILES if (path / name).exists()]
        if configs and not re.search(r"^framework:", configs[0].read_text(), re.MULTILINE):
            return None  # somebody else's config.yaml, for example of a training run that is under way
        if configs:
            return StarVLARepository(str(name_or_path), path)
        if (path / STATISTICS_FILE).exists() or (path / "checkpoints").is_dir():
            raise OSError(
                f"{path} looks like a StarVLA run folder, but holds neither {' nor '.join(CONFIG_FILES)}; "
                "copy the run's configuration into it"
            )
        return None
    hub = {name: kwargs[name] for name in HUB_KWARGS if kwargs.get(name) is not None}
    if str(name_or_path).count("/") != 1:
        return None  # no Hub repository
    for spelling in _spellings(str(name_or_path)):
        if hub_file(spelling, "config.json", hub) is not None:
            return None
        for name in CONFIG_FILES:
            config_file = hub_file(spelling, name, hub)
            if config_file is not None:
                if spelling != str(name_or_path):
                    logger.warning(
                        f"{name_or_path} is not known; loading {spelling}, as the repository is also spelled"
                    )
                return StarVLARepository(spelling, config_file.parent, hub)
    return None


def _spellings(name: str) -> list[str]:
    """A repository's name as given, then with the other spelling that StarVLA's own pages use for `…-RT-1`."""
    for old, new in (("RT-1", "RT_1"), ("RT_1", "RT-1")):
        if name.endswith(old):
            return [name, name.removesuffix(old) + new]
    return [name]


class StarVLARepository:
    """A native run folder, or the snapshot of a Hub repository.

    Args:
        name: as the user calls it.
        root: the folder, or the snapshot's folder in the Hub cache.
        hub: Hub options; None for a local folder.
    """

    def __init__(self, name: str, root: Path, hub: dict | None = None):
        self.name, self.root = name, root
        self._hub = None if hub is None else {**hub, "revision": root.name}

    @functools.cached_property
    def tree(self) -> dict:
        """The run's configuration: `config.full.yaml`, else `config.yaml`."""
        file = next(path for name in CONFIG_FILES if (path := self._file(name)) is not None)
        try:
            tree = yaml.safe_load(file.read_text())
        except yaml.YAMLError as error:
            raise OSError(f"{file} is no valid YAML: {error}") from error
        check_tree(tree, file)
        return tree

    @property
    def model_type(self) -> str:
        """Our framework."""
        return starvla_frameworks()[self.tree["framework"]["name"]]

    @property
    def mapping(self) -> StarVLAMapping:
        return starvla_mapping(self.model_type)

    def _file(self, name: str) -> Path | None:
        """A file of the repository, downloaded where needed, or None where there is no such file."""
        if self._hub is None:
            return self.root / name if (self.root / name).is_file() else None
        return hub_file(self.name, name, self._hub)

    @property
    def base_vlm(self) -> str:
        """The backbone's folder or repository."""
        name = lookup(self.tree, "framework.qwenvl.base_vlm")
        if not name:
            raise ValueError(f"the configuration of {self.name} names no framework.qwenvl.base_vlm; pass base_vlm=")
        return hub_name(name)

    # -------------------------------------------------------------- reading

    def config(
        self,
        config_class=None,
        base_vlm=None,
        return_unused_kwargs=False,
        checkpoint=None,
        fast_tokenizer=None,
        **kwargs,
    ):
        """The policy's configuration; fields in `kwargs` override it.

        Raises:
            ValueError: `config_class` is another framework's, or the YAML asks for what is not supported.
            OSError: the backbone's configuration is not found.
        """
        from transformers import AutoConfig, AutoTokenizer

        own_class = class_of(self.model_type, "config")
        if config_class is not None and not issubclass(own_class, config_class):
            raise ValueError(
                f"{self.name} holds a {self.tree['framework']['name']} policy ({own_class.__name__}), "
                f"not one of {config_class.__name__}"
            )
        try:
            fields = self.mapping.to_config(self.tree)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the configuration of {self.name} can't be read: {error}") from error
        base = base_vlm or self.base_vlm
        try:
            vlm_config = AutoConfig.from_pretrained(base, **self._hub_kwargs_for_base(kwargs))
        except OSError as error:
            raise OSError(
                f"{self.name} needs the configuration of its backbone, and {base} can't be loaded; pass base_vlm= with a "
                f"folder or repository that holds the backbone's config, tokenizer and image processor ({error})"
            ) from error
        vlm_config._name_or_path = self.base_vlm  # not where this machine keeps it
        processor_class = class_of(self.model_type, "processor")
        hub = self._hub_kwargs_for_base(kwargs)
        loaded = processor_class.load_settings({"fast_tokenizer": fast_tokenizer}, self._file, **hub)
        fields |= processor_class.native_config_fields(lambda: AutoTokenizer.from_pretrained(base, **hub), loaded)
        unused = {}
        for name, value in kwargs.items():
            if name not in HUB_KWARGS:
                is_field = name in own_class.__dataclass_fields__ and (name, value) != ("dtype", "auto")
                (fields if is_field else unused)[name] = value
        config = own_class(
            **{"vlm_config": vlm_config, "vlm_name_or_path": self.base_vlm, "architectures": None, **fields}
        )
        config._name_or_path = self.name
        return (config, unused) if return_unused_kwargs else config

    def _hub_kwargs_for_base(self, kwargs: dict) -> dict:
        """The backbone is another repository: of the Hub options, only those that don't locate a revision or folder."""
        options = {**(self._hub or {}), **kwargs}
        kept = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
        return {name: options[name] for name in kept if options.get(name) is not None}

    def processor(
        self,
        processor_class=None,
        base_vlm=None,
        checkpoint=None,
        fast_tokenizer=None,
        image_processor_config=None,
        **overrides,
    ):
        """The policy's processor: the backbone's tokenizer and image processor, the run's prompt, image size, statistics.

        `overrides` are settings of the processor, `image_processor_config` fields of the image processor to change.
        """
        from ..robots.robot_types import ROBOTS, modes_for

        own_class = class_of(self.model_type, "processor")
        if processor_class is not None and not issubclass(own_class, processor_class):
            raise ValueError(f"{self.name} needs {own_class.__name__}, not {processor_class.__name__}")
        base, hub = base_vlm or self.base_vlm, self._hub_kwargs_for_base({})
        fast_tokenizer = overrides.pop("fast", None) or fast_tokenizer  # two names of one thing
        config = self.config(base_vlm=base_vlm, fast_tokenizer=fast_tokenizer)
        settings = {
            "prompt_template": lookup(self.tree, "datasets.vla_data.CoT_prompt"),
            "image_size": self.mapping.image_size(self.tree),
            "action_dim": config.action_dim,
            "state_dim": config.state_dim,
            "action_horizon": config.action_horizon,
            **own_class.load_settings({"fast_tokenizer": fast_tokenizer}, self._file, **hub),
        }
        if "statistics" not in overrides:
            statistics = settings["statistics"] = self._statistics()
            modes = {key: modes_for(key, stats) for key, stats in statistics.items()}
            settings["normalization_modes"] = {key: value for key, value in modes.items() if value is not None}
            settings["action_names"] = {
                key: list(ROBOTS[key].action_names)
                for key in statistics
                if key in ROBOTS and len(ROBOTS[key].action_names) == config.action_dim
            }
            unknown = (
                set(statistics)
                - set(settings["normalization_modes"])
                - set(overrides.get("normalization_modes") or {})
            )
            if unknown:
                logger.warning(
                    f"{self.name} was trained on {', '.join(sorted(unknown))}: no robot type whose normalisation is known. "
                    "Pass normalization_modes={key: {'action': mode, 'state': mode}} to un-normalise its actions"
                )
        settings |= overrides
        return own_class.from_backbone(base, config.vlm_config, settings, image_processor_config, **hub)

    def _statistics(self) -> dict:
        file = self._file(STATISTICS_FILE)
        if file is None:
            raise OSError(
                f"{self.name} holds no {STATISTICS_FILE}, without which its actions have no units; copy it from the training "
                "run, or pass statistics= to AutoProcessor.from_pretrained"
            )
        try:
            statistics = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise OSError(f"{file} is no valid JSON: {error}") from error
        if not isinstance(statistics, dict):
            raise OSError(f"{file} holds a {type(statistics).__name__}; it must map robot types to their statistics")
        return statistics

    def checkpoint(self, name: str | os.PathLike | None = None) -> Path:
        """The checkpoint file of that name, else the one of the highest step, else the final model's.

        A name is looked for in the repository first; a path outside of it is taken where there is no such file in it.
        """
        files = self._list_files()
        steps = {file: int(match[1]) for file in files if (match := _CHECKPOINT.search(file))}
        finals = [file for file in files if _FINAL.search(file)]
        if name is not None:
            wanted = [file for file in [*steps, *finals] if file == str(name) or file.endswith(f"/{name}")]
            if not wanted and Path(name).is_file():
                logger.warning(f"{self.name}: loading {name}")
                return Path(name)
        else:
            # Of two formats of one step, "…model.safetensors" sorts before "…pytorch_model.pt".
            wanted = sorted(steps, key=lambda file: (-steps[file], file)) or sorted(finals)
        if not wanted:
            found = ", ".join([*sorted(steps, key=steps.get), *finals]) or "none"
            raise OSError(
                f"{self.name} holds no checkpoint{'' if name is None else f' {name}'}; expected "
                f"checkpoints/steps_N_pytorch_model.pt, steps_N_model.safetensors or final_model/pytorch_model.pt, found {found}"
            )
        path = self._file(wanted[0])
        if path is None:
            raise OSError(f"{self.name}: {wanted[0]} could not be downloaded")
        logger.warning(f"{self.name}: loading {wanted[0]}" + (f" of {len(steps)}" if len(steps) > 1 else ""))
        return path

    def _list_files(self) -> list[str]:
        """Paths of all files, relative to the repository."""
        if self._hub is not None and not (is_offline_mode() or self._hub.get("local_files_only")):
            from huggingface_hub import HfApi

            api = HfApi(token=self._hub.get("token"))
            return api.list_repo_files(self.name, revision=self._hub["revision"])
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def state_dict(self, checkpoint: str | os.PathLike | None = None) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors under our names, memory-mapped."""
        file = self.checkpoint(checkpoint)
        return self.mapping.convert(load_tensors(file), to_starvla=False)


__all__ = ["StarVLARepository", "find_repository"]
