"""What lets transformers' Auto classes see StarVLA's native layout.

It acts where transformers has found no `config.json`, so that no other repository loads differently.
"""

import functools

from .starvla import NATIVE_KWARGS, find_repository


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


__all__ = ["understand_native_repositories"]
