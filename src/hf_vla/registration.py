"""Makes transformers' Auto classes know our frameworks, without importing transformers before the user does."""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder

#: model_type -> stem of the class names; modules are modeling/{configuration,modeling}_T.py and processing/processing_T.py
FRAMEWORKS = {
    "qwen_pi_v3": "QwenPIV3",
    "qwen_pi": "QwenPI",
    "qwen_gr00t": "QwenGR00T",
    "qwen_dual": "QwenDual",
    "qwen_oft": "QwenOFT",
    "qwen_fast": "QwenFAST",
}


def class_of(model_type: str, kind: str) -> type:
    """A framework's "config", "model" or "processor" class."""
    stem = FRAMEWORKS[model_type]
    module, name = {
        "config": (f"modeling.configuration_{model_type}", f"{stem}Config"),
        "model": (f"modeling.modeling_{model_type}", f"{stem}ForActionPrediction"),
        "processor": (f"processing.processing_{model_type}", f"{stem}Processor"),
    }[kind]
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def model_type_of(processor_class: type) -> str:
    """The framework that a processor class belongs to."""
    return next(name for name, stem in FRAMEWORKS.items() if processor_class.__name__ == f"{stem}Processor")


def _register_configs() -> None:
    from transformers import AutoConfig

    from .checkpoints.starvla import understand_native_repositories

    for model_type in FRAMEWORKS:
        AutoConfig.register(model_type, class_of(model_type, "config"), exist_ok=True)
    understand_native_repositories(AutoConfig)


def _register_models() -> None:
    from transformers import AutoModel

    for model_type in FRAMEWORKS:
        AutoModel.register(class_of(model_type, "config"), class_of(model_type, "model"), exist_ok=True)


def _register_processors() -> None:
    from transformers import AutoProcessor

    for model_type in FRAMEWORKS:
        AutoProcessor.register(class_of(model_type, "config"), class_of(model_type, "processor"), exist_ok=True)


_WHEN_LOADED = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processors,
}


class _AfterImport(MetaPathFinder):
    """Runs a registration right after the module of an Auto class was loaded, whoever loads it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(f"{__package__}.modeling."):
            # Loaded first, so that registering ours with an Auto class does not find one of them half imported. For a
            # configuration not more than AutoConfig: transformers' modeling_utils may be half imported at that time.
            auto = "configuration_auto" if ".configuration_" in fullname else "modeling_auto"
            importlib.import_module(f"transformers.models.auto.{auto}")
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
