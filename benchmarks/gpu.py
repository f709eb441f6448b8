"""What hf_vla does on a GPU: correctness, latency, graphs, training, FSDP2, four bits. Random weights, no network.

    bash benchmarks/gpu.sh                     # every part in its own process, each with a time limit
    bash benchmarks/gpu.sh --tiny              # the same code with small models, also on a CPU
    python benchmarks/gpu.py --parts latency   # one part

Each part yields rows (dictionaries), which are written to `OUTPUT/results.json` as they come, and to `OUTPUT/results.md` as
tables. A measurement that fails becomes a row with its error. A new part is a generator function in PARTS.

Full size is QwenPI_v3 on a backbone of Qwen3-VL-4B's sizes in bfloat16; an observation is 1 or 3 views of 64 image tokens and 60
text tokens. Latencies are wall-clock times of calls with the device synchronised before and after.
"""

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import memory
import numpy as np
import torch
import training_speed
import transformers
from accelerate.utils import compile_regions
from full_size import synchronize
from gpu_measuring import CUDA, DEVICE, attempt, free, launches, peak_gib, run_part, timed
from gpu_policies import TEXT_TOKENS, full_policy, observations, samples, tiny_policy

import hf_vla
from hf_vla.modeling.compiled_sampling import CompiledSampling
from hf_vla.modeling.sampling import SamplingOptions
from hf_vla.modeling.static_backbone import image_features, language_states, make_plan
from hf_vla.training.flops import peak_flops, shapes_of, training_flops
from hf_vla.training.lora import add_adapter
from hf_vla.training.model_setup import apply_liger_to_backbone
from hf_vla.training.parameter_groups import FrozenInEval, freeze
from hf_vla.training_args.peft import PeftArguments

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = ("qwen_pi_v3", "qwen_pi", "qwen_gr00t", "qwen_dual", "qwen_oft", "qwen_fast")
FULL_SIZE = ("qwen_pi_v3", "qwen_gr00t", "qwen_oft")
#: loss and summed actions of the tiny policies in float32, on a CPU with torch 2.13 and transformers 5.23
RECORDED = Path(__file__).parent / "gpu_recorded.json"


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
    """Compare float32 on the device with the same on the CPU, with recorded numbers and with graphs; and bfloat16."""
    torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution
    recorded = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    for framework in FRAMEWORKS:
        yield attempt({"framework": framework}, lambda f=framework: compare(f, recorded.get(f)))


def compare(framework: str, recorded: dict | None) -> dict:
    policy, processor = tiny_policy(framework)
    policy.eval()
    items = samples(2)
    given = observation_of(items)
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
    row = {"loss": round(loss, 6), "actions": round(chunk.double().abs().sum().item(), 6)}
    if recorded is not None:
        row |= {f"{name}, from recorded": f"{abs(row[name] - recorded[name]):.1e}" for name in recorded}
    inputs = {k: v.to(DEVICE) for k, v in {**observed, **first}.items()}
    if framework != "qwen_fast":
        policy.to(torch.float32)
        static, graph = graphed(policy, inputs)
        row |= {"actions by the static path": f"{(static() - other_chunk.to(DEVICE)).abs().max():.1e}"}
        row |= {"in a graph": f"{(graph() - other_chunk.to(DEVICE)).abs().max():.1e}"}
    half_loss, _, half_chunk = run(DEVICE, torch.bfloat16)
    return row | {
        "actions, largest difference": f"{(chunk - other_chunk).abs().max():.1e}",
        "loss, difference": f"{abs(loss - other_loss):.1e}",
        "gradient, relative difference": f"{(gradient - other_gradient).norm() / gradient.norm():.1e}",
        "bfloat16: actions": f"{(chunk - half_chunk).abs().max():.1e}",
        "bfloat16: loss": f"{abs(loss - half_loss):.1e}",
    }


def graphed(policy, inputs: dict, options: SamplingOptions | None = None):
    """Return calls of the static forward: as it is, and on a GPU as a captured CUDA graph (else the same call twice)."""
    sampling = CompiledSampling()
    given = {name: inputs[name] for name in ("noise",) if name in inputs}
    options = policy.prepared_options(options or SamplingOptions(**given), len(inputs["input_ids"]))
    observed = {name: x for name, x in inputs.items() if name not in given}
    planned = sampling.planned(policy, {name: x.cpu() if name in _ON_HOST else x for name, x in observed.items()})

    @torch.no_grad()
    def static():
        return policy.sample_actions(options, **planned).float()

    return static, captured(static)


_ON_HOST = ("input_ids", "attention_mask", "image_grid_thw")


def captured(call):
    """Return a call that replays what `call` launches as one CUDA graph, and returns its output of that replay."""
    if not CUDA:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay():
        graph.replay()
        return output

    return replay


def latency(a):
    """Time a chunk of four denoising steps: `predict_action` as it is, by the static forward, and as a captured CUDA graph."""
    for framework in FULL_SIZE:
        start = time.perf_counter()
        policy = full_policy(a, framework)
        synchronize(DEVICE)
        seconds = time.perf_counter() - start
        print(f"{framework}: {policy.num_parameters():,} parameters, made in {seconds:.1f} s", flush=True)
        many = 2 if a.tiny else 8
        for batch, views in ((1, 1), (1, 3), (many, 1), (many, 3)):
            free()
            inputs = observations(batch, views, config=policy.config)
            if hasattr(policy.config, "num_inference_steps"):
                inputs["noise"] = torch.randn(
                    batch, policy.config.action_horizon, policy.config.action_dim, device=DEVICE
                )
            labels = {"framework": framework, "batch": batch, "views": views, "stage": "all"}

            def eager(policy=policy, inputs=inputs):
                return policy.predict_action(**inputs)

            row = attempt(labels | {"how": "eager"}, lambda c=eager: timed(c, a) | {"peak_gib": peak_gib()})
            yield row | (attempt({}, lambda c=eager: launches(c)) if (batch, views) == (1, 1) else {})
            calls = attempt({}, lambda p=policy, i=inputs: dict(zip(("static", "graph"), graphed(p, i), strict=True)))
            if "error" in calls:
                yield labels | {"how": "graph"} | calls
                continue
            expected = eager()
            for how, call in calls.items():
                difference = {"largest_difference": f"{(call() - expected).abs().max():.1e}"}
                row = attempt(labels | {"how": how}, lambda c=call: timed(c, a) | {"peak_gib": peak_gib()})
                yield row | difference | (launches(call) if (batch, views) == (1, 1) else {})
            if framework == "qwen_pi_v3" and (batch, views) in ((1, 1), (many, 3)):
                for stage, part in stages(policy, inputs).items():
                    whole = labels | {"stage": stage}
                    yield attempt(whole | {"how": "static"}, lambda c=part: timed(c, a))
                    yield attempt(whole | {"how": "graph"}, lambda c=part: timed(captured(c), a))
            del calls
        del policy, eager
        free()


def stages(policy, inputs: dict) -> dict:
    """Return calls of the vision tower, of the language model with projectors, and of the head's sampler, by the static forward."""
    observed = {name: x.cpu() if name in _ON_HOST else x for name, x in inputs.items() if name != "noise"}
    planned = CompiledSampling().planned(policy, observed)
    plan, pixels = planned["plan"], planned["pixel_values"]
    vlm, options = (
        policy.vlm,
        policy.prepared_options(SamplingOptions(noise=inputs["noise"]), len(inputs["input_ids"])),
    )
    with torch.no_grad():
        features, deep = image_features(vlm.model.visual, plan, pixels)
        conditioning = policy.conditioning(**planned)
        embeddings = vlm.get_input_embeddings()(planned["input_ids"])
    number = len(vlm.get_decoder().layers)
    calls = {
        "vision tower": lambda: image_features(vlm.model.visual, plan, pixels),
        "language model": lambda: language_states(vlm.get_decoder(), plan, embeddings, features, deep, number),
        "action head": lambda: policy.action_head.sample(conditioning, options),
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}


def compiled(a):
    """Compile a whole chunk by `compile_for_inference`: with torch's CUDA graphs alone, and by inductor with them."""
    cases = [("qwen_oft", 1, 1), ("qwen_gr00t", 1, 1), ("qwen_pi_v3", 1, 1)]
    backends = {"inductor and CUDA graphs": None, "CUDA graphs": "cudagraphs"} if CUDA else {"eager": "eager"}
    for framework, batch, views in cases[-1:] if a.tiny else cases:
        policy = full_policy(a, framework)
        inputs = observations(batch, views, config=policy.config)
        if hasattr(policy.config, "num_inference_steps"):
            inputs["noise"] = torch.randn(batch, policy.config.action_horizon, policy.config.action_dim, device=DEVICE)
        call = lambda p=policy, i=inputs: p.predict_action(**i)  # noqa: E731
        expected = call()
        labels = {"framework": framework, "batch": batch, "views": views}
        for name, backend in backends.items():
            torch._dynamo.reset()
            policy.compile_for_inference(backend=backend)
            row = attempt(labels | {"backend": name}, lambda c=call, e=expected: compile_time(c, a, e))
            policy.compiled_sampling = None
            yield row
            free()
        del policy, call
        free()


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
    """Time steps of fused AdamW with clipping, 16 noise draws per sample: the head, LoRA, and everything, on bfloat16 weights.

    "static": the backbone by its static forward; "blocks compiled": as with `torch_compile`. Expected memory is that of
    docs/scaling.md's tables, permanent and temporary, and a sample's activations with checkpointing.
    """
    for what in ("head", "LoRA", "everything"):
        free()
        policy, trained = trainable(a, what)
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        ways = {"": {}, "static": {"static": True}}
        if what == "head" and a.liger:
            ways["Liger"] = {"liger": True}
        ways |= {"blocks compiled": {"compile": True}} if what == "head" else {}
        for way, options in ways.items():
            for batch in (1, 2) if a.tiny else (8, 24):
                if options and batch == 1:
                    continue
                labels = {"trained": what, "parameters": f"{sum(p.numel() for p in trained) / 1e6:.0f} M", "way": way}
                measure = functools.partial(training_row, a, policy, trained, optimizer, what, batch, **options)
                yield attempt(labels | {"batch": batch}, measure)
        del policy, optimizer, trained, measure
        free()


def trainable(a, what: str):
    """Return a policy of full size of which `what` is trained, and those parameters."""
    policy = full_policy(a)
    policy.config.repeated_diffusion_steps = 16
    if what == "head":
        freeze(policy, ["^vlm"])
    else:
        policy.activation_checkpointing_enable()
    if what == "LoRA":
        base = SimpleNamespace(policy="random weights", base_vlm=None)
        policy = add_adapter(policy, base, PeftArguments(use_peft=True))
    policy.train()
    FrozenInEval().apply(policy)
    return policy, [p for p in policy.parameters() if p.requires_grad]


def training_row(
    a, policy, trained, optimizer, what: str, batch: int, *, static=False, compile=False, liger=False
) -> dict:
    inputs = observations(batch, config=policy.config, actions=True)
    if static:
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        inputs["plan"] = make_plan(policy.vlm, **{name: inputs[name] for name in names})
        inputs.pop("mm_token_type_ids")
    if liger:
        apply_liger_to_backbone(policy, None)
    model = compile_regions(policy, **({} if CUDA else {"backend": "aot_eager"})) if compile else policy

    def step():
        with torch.autocast(DEVICE.type, torch.bfloat16):  # what is trained with LoRA is float32
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    free()
    row = timed(step, a, 8, warmup=3)
    rate, flops = 1e3 * batch / row["p50_ms"], training_flops(policy, shapes_of(inputs)) / batch
    peak = peak_flops(a.card, torch.bfloat16)
    row |= {"samples_per_s": round(rate, 1), "tflop_per_sample": round(flops / 1e12, 3)}
    row |= {"mfu": f"{rate * flops / peak:.1%}" if peak else None, "peak_gib": peak_gib()}
    return row | ({} if a.tiny else {"expected_gib": expected_gib(policy, what, batch)})


@functools.cache
def _activations(backbone: bool):
    return memory.activations(memory.full_size(torch.bfloat16), 1, TEXT_TOKENS, False, backbone)


def expected_gib(policy, what: str, batch: int) -> float:
    name = {"head": "backbone frozen, in bfloat16", "LoRA": "LoRA (r=16) in bfloat16"}.get(
        what, "everything in bfloat16"
    )
    setup = next(setup for setup in memory.SETUPS if setup.name == f"{name}, DDP")
    sizes = memory.Sizes.of(memory.full_size())
    own = _activations(what != "head")
    per_sample = own.whole if what == "head" else own.checkpointed
    return round((sum(memory.needs(setup, sizes, 1)) + batch * per_sample) / 2**30, 1)


def measures(a):
    """Ratios of `benchmarks/training_speed.py`: what each measure for faster training saves here."""
    options = SimpleNamespace(tiny=a.tiny, repeats=1 if a.tiny else 5, compile=False, parts=list(training_speed.PARTS))
    torch.set_num_threads(1)
    yield from training_speed.rows(options)


def quantized(a):
    """Load a policy of 12 layers, 1,024 wide, with its backbone in four bits, and compare its chunk with bfloat16's."""
    sizes = {} if a.tiny else {"layers": 12, "width": 1024}
    policy, processor = tiny_policy("qwen_pi_v3", **sizes)
    batch = processor(**{k: v for k, v in observation_of(samples(1)).items()})
    batch |= {"noise": torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))}
    inputs = {name: x.to(DEVICE) for name, x in batch.items()}

    def measure(folder, **options):
        loaded = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16, **options)
        loaded = loaded if options else loaded.to(DEVICE)
        chunk = loaded.predict_action(**inputs)
        row = {"weights_mib": round(loaded.get_memory_footprint() / 2**20, 1)}
        return row | timed(lambda: loaded.predict_action(**inputs), a) | {"chunk": chunk}

    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        half = measure(folder)
        expected = half.pop("chunk")
        yield {"backbone": "bfloat16"} | half
        four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        row = attempt({"backbone": "4 bits (NF4)"}, lambda: measure(folder, quantization_config=four))
        if (chunk := row.pop("chunk", None)) is not None:
            row["largest_difference"] = f"{(chunk - expected).abs().max():.1e}"
        yield row


def observation_of(items: list[dict]) -> dict:
    given = {"images": [i["image"] for i in items], "text": [i["lang"] for i in items], "unnorm_key": "arm"}
    return given | {"state": np.stack([i["state"] for i in items]), "return_tensors": "pt"}


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


def record(a):
    """Write `gpu_recorded.json`: what `correctness` compares with; on a CPU."""
    rows = {framework: compare(framework, None) for framework in FRAMEWORKS}
    numbers = {name: {key: row[key] for key in ("loss", "actions")} for name, row in rows.items()}
    RECORDED.write_text(json.dumps(numbers, indent=1) + "\n")
    yield {"recorded": len(numbers)}


_ALL = (environment, correctness, latency, training, compiled, fsdp2, attention, measures, quantized)
PARTS = {f.__name__: f for f in _ALL}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "record"], default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small models and few repeats, to try the code")
    parser.add_argument("--output", default="outputs/gpu")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if a.train:
        train(a)
        return
    a.card = torch.cuda.get_device_name() if CUDA else "CPU"
    a.liger = importlib.util.find_spec("liger_kernel") is not None
    folder = Path(a.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in a.parts:
        run_part(PARTS.get(name, record), a, folder)


if __name__ == "__main__":
    main()
