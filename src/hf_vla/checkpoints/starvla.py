"""StarVLA's native run folders and Hub repositories: finding, reading and writing them (StarVLA's semantics, section 1).

All that lets transformers' Auto classes see the native layout is `understand_native_repositories`. It acts where transformers
has found no `config.json`, so that no other repository loads differently.
"""

import contextlib
import functools
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from transformers.utils import cached_file, logging

from ..registration import class_of
from ..utils import new_folder
from .base_vlm import HUB_KWARGS, load_processor_parts, resizes_to_patches
from .frameworks import FRAMEWORKS, lookup

logger = logging.get_logger(__name__)

CONFIG_FILES = ("config.full.yaml", "config.yaml")
STATISTICS_FILE = "dataset_statistics.json"
FAST_FOLDER = "fast_tokenizer"  # ours: StarVLA has the published one only
NATIVE_KWARGS = ("base_vlm", "checkpoint", "fast_tokenizer")
_CHECKPOINT = re.compile(r"(?:^|/)steps_(\d+)_(pytorch_model\.pt|model\.safetensors)$")
_FINAL = re.compile(r"(?:^|/)final_model/(pytorch_model\.pt|model\.safetensors)$")
_PROBE = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}


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
        if cached_file(spelling, "config.json", **hub, **_PROBE) is not None:
            return None
        for name in CONFIG_FILES:
            config_file = cached_file(spelling, name, **hub, **_PROBE)
            if config_file is not None:
                if spelling != str(name_or_path):
                    logger.warning(
                        f"{name_or_path} is not known; loading {spelling}, as the repository is also spelled"
                    )
                return StarVLARepository(spelling, Path(config_file).parent, hub)
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
        if lookup(tree, "framework.name") not in FRAMEWORKS:
            raise ValueError(
                f"{file} names the framework {lookup(tree, 'framework.name')!r}; known are {', '.join(FRAMEWORKS)}"
            )
        return tree

    @property
    def framework(self):
        return FRAMEWORKS[self.tree["framework"]["name"]]

    def _file(self, name: str) -> Path | None:
        """A file of the repository, downloaded where needed, or None where there is no such file."""
        if self._hub is None:
            return self.root / name if (self.root / name).is_file() else None
        path = cached_file(self.name, name, **self._hub, **_PROBE)
        return None if path is None else Path(path)

    @property
    def base_vlm(self) -> str:
        """The backbone's repository. Released configurations hold a path on the author's disk; its name tells the owner."""
        name = lookup(self.tree, "framework.qwenvl.base_vlm")
        if not name:
            raise ValueError(f"the configuration of {self.name} names no framework.qwenvl.base_vlm; pass base_vlm=")
        if Path(name).is_dir() or re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
            return name
        name = name.rstrip("/").split("/")[-1]
        return f"StarVLA/{name}" if name.endswith("-Action") else f"Qwen/{name}"

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

        own_class = class_of(self.framework.model_type, "config")
        if config_class is not None and not issubclass(own_class, config_class):
            raise ValueError(
                f"{self.name} holds a {self.tree['framework']['name']} policy ({own_class.__name__}), "
                f"not one of {config_class.__name__}"
            )
        fields = self.framework.to_config(self.tree)
        base = base_vlm or self.base_vlm
        try:
            vlm_config = AutoConfig.from_pretrained(base, **self._hub_kwargs_for_base(kwargs))
        except OSError as error:
            raise OSError(
                f"{self.name} needs the configuration of its backbone, and {base} can't be loaded; pass base_vlm= with a "
                f"folder or repository that holds the backbone's config, tokenizer and image processor ({error})"
            ) from error
        vlm_config._name_or_path = self.base_vlm  # not where this machine keeps it
        processor_class = class_of(self.framework.model_type, "processor")
        if processor_class.tells_config:
            tokenizer = AutoTokenizer.from_pretrained(base, **self._hub_kwargs_for_base(kwargs))
            fields |= processor_class.config_fields(tokenizer, **self._fast(processor_class, fast_tokenizer, kwargs))
        unused = {}
        for name, value in kwargs.items():
            if name not in HUB_KWARGS:
                (fields if name in own_class.__dataclass_fields__ else unused)[name] = value
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

    def _fast(self, processor_class, fast_tokenizer, kwargs: dict) -> dict:
        """{"fast": …} where the framework writes actions in FAST tokens: by the tokenizer of that name, else by the one in
        the repository (where `save_repository` put it), else by the published one."""
        if "fast" not in processor_class.settings():
            return {}
        from ..processing.action_tokenizer import FILES, PUBLISHED, FastActionTokenizer

        if fast_tokenizer is None:
            own = [self._file(f"{FAST_FOLDER}/{name}") for name in FILES]
            fast_tokenizer = PUBLISHED if None in own else own[0].parent
        return {"fast": FastActionTokenizer.from_pretrained(fast_tokenizer, **self._hub_kwargs_for_base(kwargs))}

    def processor(self, processor_class=None, base_vlm=None, checkpoint=None, fast_tokenizer=None, **overrides):
        """The policy's processor: the backbone's tokenizer and image processor, the run's prompt, image size, statistics."""
        from ..processing.robots import ROBOTS, modes_for

        own_class = class_of(self.framework.model_type, "processor")
        if processor_class is not None and not issubclass(own_class, processor_class):
            raise ValueError(f"{self.name} needs {own_class.__name__}, not {processor_class.__name__}")
        base, hub = base_vlm or self.base_vlm, self._hub_kwargs_for_base({})
        config = self.config(base_vlm=base_vlm, fast_tokenizer=fast_tokenizer)
        settings = {
            "prompt_template": lookup(self.tree, "datasets.vla_data.CoT_prompt"),
            "image_size": self.framework.image_size(self.tree),
            "resize_to_patches": resizes_to_patches(config.vlm_config),
            "action_dim": config.action_dim,
            "state_dim": config.state_dim,
            "action_horizon": config.action_horizon,
            **self._fast(own_class, fast_tokenizer, {}),
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
        return own_class(**load_processor_parts(base, **hub), **settings)

    def _statistics(self) -> dict:
        file = self._file(STATISTICS_FILE)
        if file is None:
            raise OSError(
                f"{self.name} holds no {STATISTICS_FILE}, without which its actions have no units; copy it from the training "
                "run, or pass statistics= to AutoProcessor.from_pretrained"
            )
        try:
            return json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise OSError(f"{file} is no valid JSON: {error}") from error

    def checkpoint(self, name: str | os.PathLike | None = None) -> Path:
        """The checkpoint file of that name, else the one of the highest step, else the final model's."""
        files = self._list_files()
        steps = {file: int(match[1]) for file in files if (match := _CHECKPOINT.search(file))}
        finals = [file for file in files if _FINAL.search(file)]
        if name is not None:
            if Path(name).is_file():
                return Path(name)
            wanted = [file for file in [*steps, *finals] if file == str(name) or file.endswith(f"/{name}")]
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
        logger.warning_once(f"{self.name}: loading {wanted[0]}" + (f" of {len(steps)}" if len(steps) > 1 else ""))
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
        return self.framework.convert(load_tensors(file), to_starvla=False)


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or `.pt` file, memory-mapped; nothing but tensors is unpickled."""
    with readable_weights(file):
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile("not what torch.save writes")
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(tensors, dict) or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
        raise OSError(f"{file} is no state dict: it must hold tensors by name and nothing else")
    return tensors


@contextlib.contextmanager
def readable_weights(source) -> Iterator[None]:
    """Turn what corrupt or misfitting weights raise into one clear error that names them."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
        raise OSError(
            f"the weights of {source} can't be read ({error}); the file is corrupt or incomplete, get it anew"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if "PytorchStreamReader" in text or "zip" in text or "mmap" in text or "storage" in text:
            raise OSError(
                f"the weights of {source} can't be read ({text.splitlines()[0]}); the file is corrupt or incomplete"
            ) from error
        raise


# ------------------------------------------------------------------ writing


def save_repository(model, processor, folder: str | os.PathLike, step: int = 0) -> Path:
    """Write a policy as a native run folder, whole or not at all.

    Args:
        model, processor: a policy of a framework that StarVLA knows.
        folder: must not exist, or be empty.
        step: the number in the checkpoint's name.
    """
    folder = Path(folder)
    name, framework = next(
        (item for item in FRAMEWORKS.items() if item[1].model_type == model.config.model_type), (None, None)
    )
    if framework is None:
        raise ValueError(f"StarVLA has no framework for {model.config.model_type!r}")
    if not (backbone := model.config.vlm_config.model_type).startswith("qwen"):
        raise ValueError(f"StarVLA's {name} has Qwen-VL backbones only; this policy's is a {backbone!r}")
    action_model, trainer = framework.to_yaml(model.config)
    vla_data = {"obs_image_size": processor.image_size}
    if processor.prompt_template is not None:
        vla_data["CoT_prompt"] = processor.prompt_template
    tree = {
        "framework": {
            "name": name,
            "qwenvl": {
                "base_vlm": model.config.vlm_name_or_path,
                "vl_hidden_dim": model.config.vlm_hidden_size,
                "num_vl_layers": model.config.vlm_num_layers,
            },
            "action_model": action_model,
            **framework.more_yaml(model.config),
        },
        "datasets": {"vla_data": vla_data},
        "trainer": trainer,
    }
    if framework.image_size(tree) != processor.image_size:
        raise ValueError(
            f"the processor resizes images to {processor.image_size}; StarVLA's {name} knows {framework.image_size(tree)}"
        )
    tensors = framework.convert(model.state_dict(), to_starvla=True)
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    with new_folder(folder) as work:
        (work / "checkpoints").mkdir()
        for file in CONFIG_FILES:
            (work / file).write_text(yaml.safe_dump(tree, sort_keys=False))
        (work / STATISTICS_FILE).write_text(json.dumps(processor.statistics, indent=2))
        if (fast := getattr(processor, "fast", None)) is not None:
            fast.save_pretrained(work / FAST_FOLDER)
        (work / "summary.jsonl").write_text(json.dumps({"steps": step}) + "\n")
        torch.save(tensors, work / "checkpoints" / f"steps_{step}_pytorch_model.pt")
    return folder


# --------------------------------------------------------------- Auto classes


def understand_native_repositories(auto_config) -> None:
    """Let `AutoConfig.from_pretrained` read a native repository; AutoModel and AutoProcessor follow, as they ask it first."""
    original = auto_config.from_pretrained.__func__
    if getattr(original, "_reads_starvla", False):
        return

    @functools.wraps(original)
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        try:
            return original(cls, pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError):
            repository = find_repository(pretrained_model_name_or_path, **kwargs)
            if repository is None:
                raise
        # AutoModel hands what comes back unused to the model, so what is AutoConfig's own must not come back.
        for name in ("code_revision", "trust_remote_code", "_from_auto", "_from_pipeline"):
            kwargs.pop(name, None)
        native = {name: kwargs[name] for name in kwargs if name in NATIVE_KWARGS}
        try:
            result = repository.config(**kwargs)
        except ValueError as error:
            raise OSError(
                str(error)
            ) from error  # AutoProcessor takes a ValueError for "not mine" and drops its message
        return (result[0], result[1] | native) if kwargs.get("return_unused_kwargs") else result

    from_pretrained._reads_starvla = True
    auto_config.from_pretrained = classmethod(from_pretrained)


__all__ = ["StarVLARepository", "find_repository", "save_repository"]
