"""Keys of StarVLA's training configurations that have no place in a recipe, and why."""

_NOT_READ = "StarVLA does not read it"
_OF_THE_BACKBONE = "follows from the backbone and the framework"
_LOADER = "of StarVLA's data loader; ours reads any LeRobot dataset"

#: dotted path of a key or of all keys below → reason; the longest path counts
LEFT_OUT = {
    "is_debug": "no effect on training",
    "version_id": "of StarVLA's own files",
    "wandb_project": "the environment variable WANDB_PROJECT",
    "wandb_entity": "the environment variable WANDB_ENTITY",
    "trackers": "summary.jsonl is always written; report_to names the others",
    "framework.qwenvl.attn_implementation": "transformers chooses: sdpa",
    "framework.qwenvl.vl_hidden_dim": _OF_THE_BACKBONE,
    "framework.reduce_in_full_precision": _NOT_READ,
    "framework.obs_image_size": "StarVLA reads datasets.vla_data.obs_image_size",
    "framework.action_model.action_hidden_dim": _OF_THE_BACKBONE,
    "framework.action_model.action_model_type": _OF_THE_BACKBONE,
    "framework.action_model.past_action_window_size": "no framework reads past actions",
    "framework.action_model.diffusion_model_cfg.cross_attention_dim": _OF_THE_BACKBONE,
    "framework.action_model.diffusion_model_cfg.input_embedding_dim": _OF_THE_BACKBONE,
    "framework.action_model.diffusion_model_cfg.num_attention_heads": _OF_THE_BACKBONE,
    "framework.action_model.diffusion_model_cfg.num_layers": _OF_THE_BACKBONE,
    "framework.qwen_lora": "recipes train in full; --use_peft adapts, see docs/training.md",
    "framework.lora": "recipes train in full; --use_peft adapts, see docs/training.md",
    "datasets.vla_data.dataset_py": _LOADER,
    "datasets.vla_data.lerobot_version": _LOADER,
    "datasets.vla_data.video_backend": _LOADER,
    "datasets.vla_data.load_all_data_for_training": _LOADER,
    "datasets.vla_data.obs": "the robot type, or the mixture's cameras, say which images",
    "datasets.vla_data.default_image_resolution": "image_size is what counts",
    "datasets.vla_data.image_size": "obs_image_size goes before",
    "datasets.vla_data.action_type": _NOT_READ,
    "datasets.vla_data.action_mode": "belongs to the mixture's entries, as action_mode: stored, delta or relative",
    "datasets.vla_data.action_horizon": "the policy's action_horizon",
    "datasets.vla_data.sequential_step_sampling": "frames are drawn at random",
    "datasets.vla_data.CoT_answer": _NOT_READ,
    "datasets.vlm_data": "of StarVLA's co-training loader",
    "trainer.epochs": "max_train_steps counts",
    "trainer.warmup_ratio": "num_warmup_steps counts",
    "trainer.max_grad_norm": "gradient_clipping counts",
    "trainer.weight_decay": "optimizer.weight_decay counts",
    "trainer.eval_interval": "StarVLA looks at a training batch; set eval_episodes, eval_strategy and eval_steps to evaluate",
    "trainer.loss_scale": "only with co-training",
    "trainer.reload_modules": "says what to take from pretrained_checkpoint, which is not set",
    "trainer.repeated_diffusion_steps": "this framework reads framework.action_model.repeated_diffusion_steps, or none",
    "trainer.scheduler_specific_kwargs": "this schedule has no such setting",
    "trainer.enable_mixed_precision_training": "bf16, always, as in StarVLA",
    "trainer.is_resume": "resume with --resume_from_checkpoint OUTPUT/checkpoint-N",
    "trainer.resume_epoch": "resume with --resume_from_checkpoint OUTPUT/checkpoint-N",
    "trainer.resume_step": "resume with --resume_from_checkpoint OUTPUT/checkpoint-N",
    "trainer.save_format": "safetensors, always",
    "trainer.full_state_keep_last": "save_total_limit keeps that many checkpoints",
}

__all__ = ["LEFT_OUT"]
