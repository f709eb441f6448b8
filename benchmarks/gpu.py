"""What hf_vla does on a GPU: correctness, latency, compilation, attention kernels, training, FSDP2. Random weights, no network.

    bash benchmarks/gpu.sh                     # every part in its own process, each with a time limit
    bash benchmarks/gpu.sh --tiny              # the same code with small models, also on a CPU
    python benchmarks/gpu.py --parts latency   # one part

Each part yields rows (dictionaries), which are written to `OUTPUT/results.json` as they come, and to `OUTPUT/results.md` as
tables. A measurement that fails becomes a row with its error. A new part is a generator function in PARTS.

Full size is QwenPI_v3 on a backbone of Qwen3-VL-4B's sizes in bfloat16; an observation is 1 or 3 views of 64 image tokens and 60
text tokens. Latencies are wall-clock times of calls with the device synchronised before and after.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from full_size import synchronize
from gpu_measuring import CUDA, DEVICE, attempt, free, launches, peak_gib, run_part, timed
from gpu_policies import full_policy, observations, samples, tiny_policy

import hf_vla

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = ("qwen_pi_v3", "qwen_pi", "qwen_gr00t", "qwen_dual", "qwen_oft", "qwen_fast")
#: dense bfloat16 TFLOP/s by the makers' data sheets
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}


def environment(a):
    """Report the card and the versions, and the rates that a large matrix product and a large copy reach."""
    yield {"what": "torch", "value": torch.__version__}
    for name in ("transformers", "accelerate", "peft", "flash_attn", "liger_kernel", "triton"):
        try:
            yield {"what": name, "value": getattr(__import__(name), "__version__", "installed")}
        except ImportError:
            yield {"what": name, "value": "not installed"}
    if not CUDA:
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    yield attempt(
        {"what": "card, memory, driver"}, lambda: {"value": subprocess.check_output(query, text=True).strip()}
    )
    x, y = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    ms = timed(lambda: x @ y, a, 10)["p50_ms"]
    yield {"what": "matrix product 8192, bfloat16, TFLOP/s", "value": round(2 * 8192**3 / ms / 1e9)}
    x, y = (torch.empty(2**31, device=DEVICE, dtype=torch.uint8) for _ in range(2))
    ms = timed(lambda: y.copy_(x), a, 10)["p50_ms"]
    yield {"what": "copy, read + written, TB/s", "value": round(2 * 2**31 / ms / 1e9, 2)}


def correctness(a):
    """Compare the same float32 weights and inputs on the CPU and on the device, and with bfloat16 on the device."""
    torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution
    for framework in FRAMEWORKS:
        yield attempt({"framework": framework}, lambda f=framework: compare(f))


def compare(framework: str) -> dict:
    policy, processor = tiny_policy(framework)
    policy.eval()
    items = samples(2)
    given = {"images": [i["image"] for i in items], "text": [i["lang"] for i in items], "unnorm_key": "arm"}
    given |= {"state": np.stack([i["state"] for i in items]), "return_tensors": "pt"}
    observed = processor(**given)
    batch = processor(**given, actions=np.stack([i["action"] for i in items]))
    draw = {"noise": torch.randn(4, 3, 2), "timestep": torch.rand(4)} if framework != "qwen_fast" else {}
    first = {name: value[:2] for name, value in draw.items() if name == "noise"}

    def run(device, dtype=torch.float32):
        policy.to(device, dtype).zero_grad()
        inputs = {k: v.to(device) for k, v in {**batch, **draw}.items()}
        loss = policy(**inputs).loss
        loss.backward()
        gradient = torch.cat([p.grad.float().cpu().flatten() for p in policy.parameters() if p.grad is not None])
        chunk = policy.predict_action(**{k: v.to(device) for k, v in {**observed, **first}.items()})
        return loss.item(), gradient, chunk.cpu()

    (loss, gradient, chunk), (other_loss, other_gradient, other_chunk) = run("cpu"), run(DEVICE)
    half_loss, _, half_chunk = run(DEVICE, torch.bfloat16)
    return {
        "actions, largest difference": f"{(chunk - other_chunk).abs().max():.1e}",
        "loss": round(loss, 6),
        "loss, difference": f"{abs(loss - other_loss):.1e}",
        "gradient, relative difference": f"{(gradient - other_gradient).norm() / gradient.norm():.1e}",
        "bfloat16: actions": f"{(chunk - half_chunk).abs().max():.1e}",
        "bfloat16: loss": f"{abs(loss - half_loss):.1e}",
    }


def latency(a):
    """Time `predict_action` with four denoising steps, and its stages, called one by one."""
    for framework in ("qwen_pi_v3", "qwen_gr00t", "qwen_oft"):
        start = time.perf_counter()
        policy = full_policy(a, framework)
        synchronize(DEVICE)
        print(
            f"{framework}: {policy.num_parameters():,} parameters, made in {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        many = 2 if a.tiny else 8
        cases = [(1, 1), (1, 3), (many, 1), (many, 3)] if framework == "qwen_pi_v3" else [(1, 1)]
        for batch, views in cases:
            free()
            inputs = observations(batch, views, config=policy.config)
            labels = {"framework": framework, "batch": batch, "views": views}
            call = lambda p=policy, i=inputs: p.predict_action(**i)  # noqa: E731
            yield attempt(
                labels | {"stage": "all"}, lambda c=call: timed(c, a) | {"peak_gib": peak_gib()} | launches(c)
            )
            if framework == "qwen_pi_v3" and (batch, views) in ((1, 1), (many, 3)):
                for stage, part in stages(policy, inputs).items():
                    yield attempt(labels | {"stage": stage}, lambda c=part: timed(c, a, 20) | launches(c))
        del policy, call
        free()


def stages(policy, inputs: dict) -> dict:
    """Return calls of the vision tower, of the whole backbone (with the projectors), and of the head's sampler."""
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.no_grad():
        conditioning = policy._condition(**inputs)
    calls = {
        "vision tower": lambda: policy.vlm.model.visual(pixels, grid_thw=grid),
        "backbone, vision included": lambda: policy._condition(**inputs),
        "action head": lambda: policy.action_head.sample(conditioning),
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}


def compiled(a):
    """Compile the head's sampler, the transformer blocks one by one, and `predict_action`, all as they are."""
    policy = full_policy(a)
    inputs = observations(1, config=policy.config)
    with torch.no_grad():
        conditioning = policy._condition(**inputs)
    noise = torch.randn(1, policy.config.action_horizon, policy.config.action_dim, device=DEVICE)
    states, mask = conditioning.states, conditioning.key_mask

    def sample(states, mask, noise):
        return policy.action_head.sample(type(conditioning)(states, mask), noise=noise)

    def head():
        return sample(states, mask, noise)

    def whole():
        return policy.predict_action(**inputs, noise=noise)

    expected = whole()
    modes = ("default", "reduce-overhead") if CUDA else ("default",)
    torch._dynamo.config.recompile_limit = 64
    yield {"what": "head", "mode": "eager"} | timed(torch.no_grad()(head), a)
    yield {"what": "predict_action", "mode": "eager"} | timed(whole, a)
    blocks = [m for m in policy.modules() if isinstance(m, transformers.modeling_layers.GradientCheckpointingLayer)]
    for block in blocks:
        block.forward = compile_with(block.forward, "default")
    yield attempt(
        {"what": "predict_action, block by block", "mode": "default"}, lambda: compile_time(whole, a, expected)
    )
    for block in blocks:
        del block.forward
    for mode in modes:
        torch._dynamo.reset()
        function = compile_with(sample, mode, fullgraph=True)
        call = torch.no_grad()(lambda f=function: f(states, mask, noise))
        yield attempt({"what": "head, one graph", "mode": mode}, lambda c=call: compile_time(c, a, expected))
    for mode in modes:
        torch._dynamo.reset()
        function = compile_with(policy.predict_action, mode)
        call = lambda f=function: f(**inputs, noise=noise)  # noqa: E731
        yield attempt({"what": "predict_action", "mode": mode}, lambda c=call: compile_time(c, a, expected))


def compile_with(function, mode: str, **options):
    options |= {"mode": mode} if CUDA else {"backend": "aot_eager"}  # --tiny: no compiler needed
    return torch.compile(function, **options)


def compile_time(call, a, expected) -> dict:
    torch._dynamo.utils.counters.clear()
    start = time.perf_counter()
    difference = (call() - expected).abs().max().item()
    row = {"compile_s": round(time.perf_counter() - start, 1)}
    counters = torch._dynamo.utils.counters
    row |= {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}
    return row | timed(call, a) | launches(call) | {"largest_difference": f"{difference:.1e}"}


def attention(a):
    """Compare attention implementations of backbone and head, with the prompt's mask and without one."""
    policy, many = full_policy(a), 2 if a.tiny else 8
    for implementation in ("sdpa", "eager", "flash_attention_2"):
        labels = {"implementation": implementation}
        chosen = attempt(labels, lambda i=implementation: policy.set_attn_implementation(i) or {})
        if "error" in chosen:
            yield chosen
            continue
        for masked, batch in ((True, 1), (False, 1), (True, many), (False, many)):
            inputs = observations(batch, 3, config=policy.config)
            inputs["attention_mask"] = inputs["attention_mask"] if masked else None
            call = lambda i=inputs: policy.predict_action(**i)  # noqa: E731
            yield attempt(
                labels | {"masked": masked, "batch": batch, "views": 3},
                lambda c=call: timed(c, a, 20) | {"kernels_ms": launches(c)["kernels_ms"]},
            )


def training(a):
    """Time steps of a plain loop with fused AdamW, bfloat16 weights and 16 noise draws per sample; LoRA with checkpointing."""
    from hf_vla.training.lora import add_adapter
    from hf_vla.training.parameter_groups import freeze
    from hf_vla.training_args.peft import PeftArguments

    for what in ("head", "LoRA, checkpointed"):
        free()
        policy = full_policy(a)
        config = policy.config
        config.repeated_diffusion_steps = 16
        if what == "head":
            freeze(policy, ["^vlm"])
            policy.train()
            policy.vlm.eval()
        else:
            policy.activation_checkpointing_enable()
            base = SimpleNamespace(policy="random weights", base_vlm=None)
            policy = add_adapter(policy, base, PeftArguments(use_peft=True)).train()
        trained = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=CUDA)
        for batch in (1, 2) if a.tiny else (8, 24):
            inputs = observations(batch, config=config, actions=True)

            def step(policy=policy, inputs=inputs, optimizer=optimizer):
                with torch.autocast(DEVICE.type, torch.bfloat16):  # what is trained with LoRA is float32
                    loss = policy(**inputs).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            def measure(step=step, batch=batch, lora=what != "head", policy=policy, inputs=inputs):
                free()
                row = timed(step, a, 10, warmup=3)
                rate = 1e3 * batch / row["p50_ms"]
                flops = training_flops(policy, inputs, lora)
                peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if CUDA and name in a.card), None)
                row |= {"samples_per_s": round(rate, 1), "tflop_per_sample": round(flops / 1e12, 3)}
                row |= {"mfu": f"{rate * flops / peak / 1e12:.1%}" if peak else None, "peak_gib": peak_gib()}
                return row

            trains = f"{sum(p.numel() for p in trained) / 1e6:.0f} M"
            yield attempt({"trained": what, "parameters": trains, "batch": batch}, measure)
        del policy, optimizer, trained, step, measure
        free()


def training_flops(policy, inputs: dict, lora: bool) -> float:
    """Return the floating-point operations of a training step per sample: matrix products only, without recomputation.

    A matrix of P parameters takes 2 P operations per token in the forward pass, as many for the gradient of its input and as
    many for its own: the language model 2 P (head only) or 4 P (LoRA) per text or image token, the vision tower 2 P per patch,
    projectors and the head's key and value matrices 6 P per token, the head's other matrices 6 P for each of R * H noisy
    actions. Attention takes 4 * queries * keys * width more in each layer's forward pass, counting all keys, and twice that in
    the backward pass.
    """
    config = policy.config
    text, vision = config.vlm_config.text_config, config.vlm_config.vision_config
    batch, tokens = inputs["input_ids"].shape
    patches = len(inputs["pixel_values"]) // batch
    actions = config.repeated_diffusion_steps * config.action_horizon
    width, layers = config.head_hidden_size, text.num_hidden_layers
    count, unused = Counter(), ("embed_tokens", "pos_embed", "lm_head", "original_module")
    for name, p in policy.named_parameters():
        if p.ndim < 2 or any(part in name for part in unused):
            continue
        if "lora_" in name:
            count["adapter"] += p.numel()
        elif ".visual." in name:
            count["vision"] += p.numel() / (4 if "merger" in name else 1)  # which sees four patches as one token
        elif "language_model" in name:
            count["language"] += p.numel()
        elif "projectors" in name or "to_k." in name or "to_v." in name:
            count["of observation"] += p.numel()
        elif any(part in name for part in (".attn1.", ".ff.", "action_encoder", "action_decoder")):
            count["of action"] += p.numel()
    text_width = text.num_attention_heads * text.head_dim
    language = 2 * count["language"] * tokens * (2 if lora else 1)
    language += 4 * tokens**2 * text_width * layers * (3 if lora else 1)
    seen = 2 * count["vision"] * patches + 4 * patches**2 * vision.hidden_size * vision.depth
    head = (
        2 * (count["of observation"] * tokens + count["of action"] * actions) + 4 * actions * tokens * width * layers
    )
    return seen + language + 3 * (head + 2 * count["adapter"] * tokens)


def fsdp2(a):
    """Run 8 steps of `VLATrainer` with launch_configs/fsdp2.yaml on one device, save at step 5, and resume from there."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "src" / "hf_vla" / "launch_configs" / "fsdp2.yaml"),
    ]
    launch = [*launch, "--num_processes", "1"] if CUDA else [sys.executable]  # accelerate's FSDP2 wants a GPU

    def run(*more: str) -> dict:
        command = [*launch, __file__, "--train", *more, *["--tiny"] * a.tiny]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        with (Path(a.output) / "fsdp2.log").open("a") as log:
            log.write(result.stdout + result.stderr)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if "Error" in line and "elastic" not in line]
            raise RuntimeError(" | ".join(lines[-3:]) or result.stderr[-300:])
        return json.loads(result.stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder:
        yield attempt({"what": "8 steps"}, lambda: run("--output", folder))
        resume = ["--output", folder, "--resume", f"{folder}/checkpoint-5"]
        yield attempt({"what": "steps 6 to 8, resumed"}, lambda: run(*resume))


def train(a) -> None:
    """Make one run of `fsdp2`, in a process that accelerate has launched."""
    policy, processor = tiny_policy("qwen_pi_v3") if a.tiny else tiny_policy("qwen_pi_v3", layers=12, width=1024)
    parameters = policy.num_parameters()
    args = hf_vla.VLATrainingArguments(
        output_dir=a.output,
        max_steps=8,
        save_steps=5,
        logging_steps=1,
        per_device_train_batch_size=4,
        bf16=CUDA,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = hf_vla.VLATrainer(policy, args, processing_class=processor, train_dataset=samples(64))
    trainer.train(resume_from_checkpoint=a.resume)
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    losses = [round(row["loss"], 4) for row in trainer.state.log_history if "loss" in row]
    saved = transformers.AutoModel.from_pretrained(a.output)
    batch = trainer.data_collator(samples(1))
    finite = bool(saved.predict_action(**batch).isfinite().all())
    kind = type(trainer.model_wrapped).__name__
    row = {"parameters": f"{parameters / 1e6:.0f} M", "model": kind, "losses": losses, "saved policy predicts": finite}
    print(json.dumps(row | {"peak_gib": peak_gib()}))


PARTS = {f.__name__: f for f in (environment, correctness, latency, compiled, attention, training, fsdp2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small models and few repeats, to try the code")
    parser.add_argument("--output", default="outputs/gpu")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    a = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if a.train:
        train(a)
        return
    a.card = torch.cuda.get_device_name() if CUDA else "CPU"
    folder = Path(a.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in a.parts:
        run_part(PARTS[name], a, folder)


if __name__ == "__main__":
    main()
