"""Makes transformers' Auto classes know our frameworks, without importing transformers before the user does."""

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder

#: model_type -> stem of the class names; modules are modeling/{configuration,modeling}_T.py and processing/processing_T.py
FRAMEWORKS = {
    "qwen_pi_v3": "QwenPIV3",
    "qwen_pi": "QwenPI",
    "qwen_gr00t": "QwenGR00T",
    "qwen_dual": "QwenDual",
    "qwen_oft": "QwenOFT",
    "qwen_fast": "QwenFAST",
}
#: (model_type, kind) -> class, of the frameworks that users registered
_REGISTERED: dict[tuple[str, str], type] = {}


def register_framework(model_type: str, config: type, model: type, processor: type) -> None:
    """Make a framework of your own known to `AutoConfig`, `AutoModel` and `AutoProcessor`, and to training recipes.

    Args:
        model_type: its name, the same as `config.model_type`.
        config, model, processor: its classes: a `VLAConfig`, a `VLAPreTrainedModel`, a `VLAProcessor`.

    Raises:
        ValueError: the name is taken by a framework of hf_vla or a model of transformers, or is not the configuration's, or
            the configuration is not the model's.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if model_type in FRAMEWORKS:
        raise ValueError(f"{model_type!r} is a framework of hf_vla; give yours a name of its own")
    AutoConfig.register(model_type, config)
    AutoModel.register(config, model)
    AutoProcessor.register(config, processor)
    # AutoProcessor finds a class by its name and takes the oldest: not the one of a notebook's cell that ran before.
    if (older := _REGISTERED.get((model_type, "config"), config)) is not config:
        PROCESSOR_MAPPING._extra_content.pop(older)
    classes = {"config": config, "model": model, "processor": processor}
    _REGISTERED.update({(model_type, kind): cls for kind, cls in classes.items()})


def frameworks() -> list[str]:
    """The `model_type`s of all frameworks, registered ones included."""
    return [*FRAMEWORKS, *(model_type for model_type, kind in _REGISTERED if kind == "config")]


def class_of(model_type: str, kind: str) -> type:
    """A framework's "config", "model" or "processor" class."""
    if (model_type, kind) in _REGISTERED:
        return _REGISTERED[model_type, kind]
    stem = FRAMEWORKS[model_type]
    module, name = {
        "config": (f"modeling.configuration_{model_type}", f"{stem}Config"),
        "model": (f"modeling.modeling_{model_type}", f"{stem}ForActionPrediction"),
        "processor": (f"processing.processing_{model_type}", f"{stem}Processor"),
    }[kind]
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def model_type_of(processor_class: type) -> str:
    """The framework that a processor class belongs to; the first, where several share one."""
    for name, stem in FRAMEWORKS.items():
        if processor_class.__name__ == f"{stem}Processor":
            return name
    for (name, kind), cls in _REGISTERED.items():
        if kind == "processor" and cls is processor_class:
            return name
    raise ValueError(
        f"{processor_class.__name__} belongs to no framework; register it with hf_vla.register_framework, or call from_vlm "
        f"of a processor of {', '.join(frameworks())}"
    )


def _register_configs() -> None:
    from transformers import AutoConfig

    from .checkpoints.auto_config import understand_native_repositories

    for model_type in FRAMEWORKS:
        AutoConfig.register(model_type, class_of(model_type, "config"), exist_ok=True)
    understand_native_repositories(AutoConfig)


def _register_models() -> None:
    from transformers import AutoModel

    from .checkpoints.adapters import understand_adapters

    for model_type in FRAMEWORKS:
        AutoModel.register(class_of(model_type, "config"), class_of(model_type, "model"), exist_ok=True)
    understand_adapters(AutoModel)


def _register_processors() -> None:
    from transformers import AutoProcessor

    for model_type in FRAMEWORKS:
        AutoProcessor.register(class_of(model_type, "config"), class_of(model_type, "processor"), exist_ok=True)


def _register_pipeline() -> None:
    importlib.import_module(f"{__package__}.pipeline")  # registers itself


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


class _AfterImport(MetaPathFinder):
    """Runs a registration right after the module of an Auto class was loaded, whoever loads it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(f"{__package__}.modeling.") or fullname == "transformers.modeling_layers":
            # Loaded first, so that registering ours with an Auto class does not find one of them, or the module of layers
            # that they build on, half imported. For a configuration not more than AutoConfig: transformers' modeling_utils
            # may be half imported at that time.
            auto = "configuration_auto" if ".configuration_" in fullname else "modeling_auto"
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
