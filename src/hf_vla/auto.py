"""The hook that lets transformers' Auto classes know this package, without importing transformers before the user does.

AutoConfig, AutoModel, AutoProcessor and the pipelines learn of our frameworks right after they are imported; AutoConfig also reads
StarVLA's native layout, where transformers finds no `config.json`, and AutoModel adapters.
"""

import functools
import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder

from .plugins import load_plugins
from .registry import FRAMEWORKS, class_of, frameworks


def understand_native_repositories(auto_config) -> None:
    """Let `AutoConfig.from_pretrained` read a native repository; AutoModel and AutoProcessor follow, as they ask it first."""
    original = auto_config.from_pretrained.__func__
    if getattr(original, "_reads_starvla", False):
        return

    @functools.wraps(original)
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        from .checkpoints.starvla import NATIVE_KWARGS, find_repository

        try:
            return original(cls, pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError):
            if load_plugins():  # one of them may bring the framework
                return from_pretrained(cls, pretrained_model_name_or_path, **kwargs)
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


def understand_adapters(auto_model) -> None:
    """Let `AutoModel.from_pretrained` load a policy's adapter by the configuration beside it.

    transformers would take the base's, which may be a plain vision-language model.
    """
    original = auto_model.from_pretrained.__func__
    if getattr(original, "_reads_adapters", False):
        return

    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        from .checkpoints.adapters import find_adapter

        adapter = find_adapter(pretrained_model_name_or_path, **{**kwargs, "adapter_kwargs": None})
        if adapter is None or adapter.model_type not in frameworks():
            return original(cls, pretrained_model_name_or_path, *args, **kwargs)
        for name in ("code_revision", "trust_remote_code"):
            kwargs.pop(name, None)
        return class_of(adapter.model_type, "model").from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    from_pretrained.__doc__, from_pretrained._reads_adapters = original.__doc__, True
    auto_model.from_pretrained = classmethod(from_pretrained)


def _register_configs() -> None:
    from transformers import AutoConfig

    for model_type in FRAMEWORKS:
        AutoConfig.register(model_type, class_of(model_type, "config"), exist_ok=True)
    understand_native_repositories(AutoConfig)


def _register_models() -> None:
    from transformers import AutoModel

    for model_type in FRAMEWORKS:
        AutoModel.register(class_of(model_type, "config"), class_of(model_type, "model"), exist_ok=True)
    understand_adapters(AutoModel)


def _register_processors() -> None:
    from transformers import AutoProcessor

    for model_type in FRAMEWORKS:
        AutoProcessor.register(class_of(model_type, "config"), class_of(model_type, "processor"), exist_ok=True)


def _register_pipeline() -> None:
    importlib.import_module(f"{__package__}.inference.pipeline")  # registers itself


_WHEN_LOADED = {
    "transformers.pipelines": _register_pipeline,
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processors,
}


class _Loaded(Loader):
    """Hands out a module that was imported while it was searched for, in place of a second copy."""

    def __init__(self, module):
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec):
        return self.module

    def exec_module(self, module):
        module.__spec__, module.__loader__ = self.spec, self.spec.loader


#: How the names of modules begin that define such classes -> the Auto classes' module that they need whole, if any
_NEEDS = {
    "configuration": "configuration_auto",
    "processing": "processing_auto",
    "modeling": "modeling_auto",
    "dino": "modeling_auto",
    "starvla": None,
}


def _auto_module_before(fullname: str) -> str | None:
    """The Auto classes' module to load before `fullname`, so that registering ours with them finds no half-imported module.

    For a configuration this is AutoConfig's alone: transformers' modeling_utils may be half imported at that time.
    """
    if fullname == "transformers.modeling_layers":
        return "modeling_auto"
    package, _, name = fullname.rpartition(".")
    shared = f"{__package__}.modeling"
    if package == shared and name not in FRAMEWORKS:
        return _NEEDS.get(name.partition("_")[0], "modeling_auto")
    return _NEEDS.get(name.partition("_")[0]) if package.startswith(f"{shared}.") else None


class _AfterImport(MetaPathFinder):
    """Runs a registration right after the module of an Auto class was loaded, whoever loads it."""

    def find_spec(self, fullname, path=None, target=None):
        if (auto := _auto_module_before(fullname)) is not None:
            importlib.import_module(f"transformers.models.auto.{auto}")
            if (module := sys.modules.get(fullname)) is not None:
                module.__spec__ = importlib.util.spec_from_loader(fullname, _Loaded(module))
                return module.__spec__  # which the import system takes anyway, now that the module is there
        if fullname not in _WHEN_LOADED:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            _WHEN_LOADED[fullname]()

        spec.loader.exec_module = load_and_register
        return spec


def install() -> None:
    """Register with the Auto classes that are loaded already, and with the others as soon as they are."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    for name, register in _WHEN_LOADED.items():
        if name in sys.modules:
            register()
    sys.meta_path.insert(0, _AfterImport())
