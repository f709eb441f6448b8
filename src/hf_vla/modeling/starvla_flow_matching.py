"""The part of StarVLA's format that the frameworks share whose head denoises (StarVLA's semantics, sections 4, 5 and 8)."""

from typing import Any

from ..checkpoints.starvla_mapping import StarVLAMapping, first_given, lookup


class DenoisingMapping(StarVLAMapping):
    """Base of the mappings of the frameworks whose head is a diffusion transformer."""

    prefixes = {"action_model.model.": "action_head.transformer.", "action_model.": "action_head."}
    training_fields = frozenset({"repeated_diffusion_steps"})
    action_model_fields = {
        "num_future_tokens": ("num_target_vision_tokens", 32),
        "use_position_embedding": ("add_pos_embed", True),
        "max_action_positions": ("max_seq_len", 1024),
    }
    #: `interleave_self_attention` if the YAML is silent
    interleave = True
    #: what `diffusion_model_cfg.positional_embeddings` may be; the first if the YAML is silent
    positional_embeddings: tuple[str | None, ...] = (None,)

    def repeated_diffusion_steps(self, tree: dict) -> int:
        """Return the noise draws per sample; frameworks read them from different places."""
        raise NotImplementedError

    def to_config(self, tree: dict) -> dict[str, Any]:
        diffusion = lookup(tree, "framework.action_model.diffusion_model_cfg") or {}
        known = {"norm_type": ("ada_norm",), "positional_embeddings": self.positional_embeddings}
        for name, values in known.items():
            if diffusion.get(name, values[0]) not in values:
                possible = " or ".join(map(repr, values))
                raise ValueError(f"diffusion_model_cfg.{name} is {diffusion[name]!r}; only {possible} is supported")
        for name in ("use_canonical_forward", "interleave_self_attention"):
            if not isinstance(diffusion.get(name), bool | None):
                raise ValueError(f"diffusion_model_cfg.{name} is {diffusion[name]!r}; it must be true or false")
        # `use_canonical_forward`, if not null, overrides the flag (old configurations).
        interleave = first_given(
            diffusion.get("use_canonical_forward"), diffusion.get("interleave_self_attention"), self.interleave
        )
        return {
            **super().to_config(tree),
            "repeated_diffusion_steps": int(self.repeated_diffusion_steps(tree)),
            "attention_head_dim": int(first_given(diffusion.get("attention_head_dim"), 64)),
            "interleave_self_attention": bool(interleave),
            "dropout": float(first_given(diffusion.get("dropout"), 0.2)),
            "final_dropout": bool(first_given(diffusion.get("final_dropout"), True)),
        }

    def action_model(self, config) -> dict[str, Any]:
        return {
            **super().action_model(config),
            "repeated_diffusion_steps": config.repeated_diffusion_steps,
            "diffusion_model_cfg": {
                "dropout": config.dropout,
                "final_dropout": config.final_dropout,
                "interleave_self_attention": config.interleave_self_attention,
                "norm_type": "ada_norm",
                "positional_embeddings": None,
                "attention_head_dim": config.attention_head_dim,
                **self.diffusion_model(config),
            },
        }

    def diffusion_model(self, config) -> dict[str, Any]:
        """Return the head's sizes in `diffusion_model_cfg`, as of a head with one block per layer of the backbone."""
        width = self.width(config)
        return {
            "num_layers": config.vlm_num_layers,
            "input_embedding_dim": width,
            "cross_attention_dim": width,
            "num_attention_heads": width // config.attention_head_dim,
        }

    def width(self, config) -> int:
        """Return the width of the head."""
        return config.vlm_hidden_size


class FlowMatchingMapping(DenoisingMapping):
    """Base of the mappings of PI, PI_v3, GR00T and Dual."""

    action_model_fields = {
        **DenoisingMapping.action_model_fields,
        "num_inference_steps": ("num_inference_timesteps", 4),
        "noise_beta_alpha": ("noise_beta_alpha", 1.5),
        "noise_beta_beta": ("noise_beta_beta", 1.0),
        "noise_s": ("noise_s", 0.999),
        "num_timestep_buckets": ("num_timestep_buckets", 1000),
    }

    def to_config(self, tree: dict) -> dict[str, Any]:
        action_model = lookup(tree, "framework.action_model") or {}
        output_dim = lookup(action_model, "diffusion_model_cfg.output_dim")
        return {
            **super().to_config(tree),
            "output_dim": int(first_given(output_dim, action_model.get("hidden_size"), 26)),
        }

    def action_model(self, config) -> dict[str, Any]:
        tree = super().action_model(config)
        return tree | {"diffusion_model_cfg": {**tree["diffusion_model_cfg"], "output_dim": config.output_dim}}


class LayerwiseMapping(FlowMatchingMapping):
    """Base of the mappings of PI and PI_v3, whose head has one block per layer of the backbone."""

    ignored_interleave = True

    def action_model(self, config) -> dict[str, Any]:
        return {"action_model_type": "LayerwiseFM", **super().action_model(config)}

    def diffusion_model(self, config) -> dict[str, Any]:
        # Unlike interleave_self_attention, it has always meant what it says.
        return {**super().diffusion_model(config), "use_canonical_forward": config.interleave_self_attention}


#: `action_model_type` of GR00T's head -> width, width of an attention head
DIT_SIZES = {"DiT-B": (768, 64), "DiT-L": (1536, 48)}


class DiTMapping(FlowMatchingMapping):
    """Base of the mappings of GR00T and Dual: a head of a fixed size that attends one state of the backbone."""

    default_horizon = 8

    def repeated_diffusion_steps(self, tree: dict) -> int:
        return first_given(lookup(tree, "framework.action_model.repeated_diffusion_steps"), 8)

    def to_config(self, tree: dict) -> dict[str, Any]:
        action_model = lookup(tree, "framework.action_model") or {}
        diffusion = action_model.get("diffusion_model_cfg") or {}
        size = first_given(action_model.get("action_model_type"), "DiT-B")
        if size not in DIT_SIZES:
            raise ValueError(f"action_model.action_model_type is {size!r}; known are {', '.join(DIT_SIZES)}")
        width, head_dim = DIT_SIZES[size]
        inner = int(first_given(action_model.get("hidden_size"), 1024))
        output_dim = int(first_given(diffusion.get("output_dim"), inner))
        return {
            **super().to_config(tree),
            "attention_head_dim": int(first_given(diffusion.get("attention_head_dim"), head_dim)),
            "output_dim": output_dim,
            "mlp_hidden_size": None if inner == output_dim else inner,
            "action_hidden_size": width,
            "num_action_layers": int(first_given(diffusion.get("num_layers"), 16)),
            "connect_layer_index": int(first_given(action_model.get("connect_layer_index"), -1)),
        }

    def action_model(self, config) -> dict[str, Any]:
        size = next((name for name, (width, _) in DIT_SIZES.items() if width == config.action_hidden_size), None)
        if size is None:
            widths = " and ".join(f"{width} ({name})" for name, (width, _) in DIT_SIZES.items())
            raise ValueError(
                f"action_hidden_size is {config.action_hidden_size}; StarVLA's format knows {widths} only"
            )
        return {
            "action_model_type": size,
            "action_hidden_dim": config.output_dim,
            "hidden_size": config.mlp_hidden_size or config.output_dim,
            "connect_layer_index": config.connect_layer_index,
            **super().action_model(config),
        }

    def diffusion_model(self, config) -> dict[str, Any]:
        return {
            "num_layers": config.num_action_layers,
            "cross_attention_dim": config.vlm_hidden_size,
            "num_attention_heads": config.action_hidden_size // config.attention_head_dim,
        }


__all__ = ["DIT_SIZES", "DenoisingMapping", "DiTMapping", "FlowMatchingMapping", "LayerwiseMapping"]
