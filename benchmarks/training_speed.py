"""What each measure for faster training saves on this device, as a ratio of times in one run.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --parts collator optimizer
    python benchmarks/training_speed.py --tiny      # small sizes, to try the code

"before" is what the library did, or would do without the measure; "after" what it does. Both run in turn on the same inputs,
and the median counts: of processor times on a CPU, which other work on the cores changes little, else of wall-clock times
with the device synchronised.

* collator: a batch of 224² views as transformers' image processor, chat template and tokenizer make it sample by sample, against
  `VLADataCollator`. "sent": made in a loader's worker and received by the main process, processor time of both.
* patches: the patch embedding as the convolution that it is, against a matrix product; forward and backward.
* backbone: forward and backward of the backbone by transformers' own forward, against the static one, which also runs the
  vision tower on all images at once.
* optimizer: clipping and AdamW parameter by parameter, in groups of tensors ("foreach"), fused.
* average: the moving average of the weights parameter by parameter, and of many by one call.
* linear: float32 products of the action head, forward and backward, by MKL and by oneDNN; CPU only.
* compiled: a step with the transformer blocks compiled one by one, against a step without; only with --compile.
"""

import argparse
import statistics
import time

import numpy as np
import psutil
import torch
from full_size import synchronize
from gpu_measuring import CUDA, DEVICE
from gpu_policies import samples, tiny_policy
from torch.utils.data import DataLoader

from hf_vla.data import VLADataCollator
from hf_vla.modeling.backbone import layer_states
from hf_vla.modeling.linear import Linear
from hf_vla.modeling.static_backbone import make_plan
from hf_vla.processing.vlm_inputs import chat_prompt


def in_turn(functions: dict, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each function."""
    clock, times = time.perf_counter if CUDA else time.process_time, {name: [] for name in functions}
    for attempt in range(repeats + 1):
        for name, function in functions.items():
            synchronize(DEVICE)
            start = clock()
            function()
            synchronize(DEVICE)
            if attempt:  # the first is a warm-up
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def compared(what: str, functions: dict, repeats: int):
    """Yield a row per function but the first, which is what there was before."""
    (_, before), *after = in_turn(functions, repeats).items()
    for name, milliseconds in after:
        yield {
            "what": what,
            "how": name,
            "before_ms": round(before, 3),
            "after_ms": round(milliseconds, 3),
            "times": round(before / milliseconds, 2),
        }


class PlainCollator:
    """What `VLADataCollator` did at first: every sample's prompt rendered and tokenised whole, pixels by transformers."""

    def __init__(self, processor) -> None:
        self.processor = processor

    def __call__(self, items: list[dict]) -> dict:
        processor, key = self.processor, items[0]["dataset"]
        flat = [view for item in items for view in item["image"]]
        batch = dict(processor.image_processor(images=flat, return_tensors="pt"))
        merged = processor.image_processor.merge_size**2
        counts = iter((batch["image_grid_thw"].prod(dim=1) // merged).tolist())
        prompts = []
        for item in items:
            text = processor._prompt(item["lang"], None)
            first, *others = chat_prompt(processor, len(item["image"]), text).split("<|image_pad|>")
            prompts.append(first + "".join("<|image_pad|>" * next(counts) + rest for rest in others))
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
        batch |= {name: x for name, x in processor.tokenizer(prompts, **options).items() if name != "token_type_ids"}
        image_token_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        batch["mm_token_type_ids"] = (batch["input_ids"] == image_token_id).int()
        normalized = [processor.normalizer(key, "action").normalize(item["action"]) for item in items]
        batch["actions"] = torch.from_numpy(np.stack(normalized))
        return batch


def collator(a):
    _, processor = tiny_policy("qwen_gr00t")
    plain = PlainCollator(processor)
    ours = VLADataCollator(processor, use_state=False)
    for number, views in ((2, 3), (4, 1)) if a.tiny else ((16, 3), (32, 1)):
        items = samples(number, views, side=64 if a.tiny else 224)
        expected = plain(items)
        assert all(torch.allclose(x, expected[name], atol=1e-6) for name, x in ours(items).items())
        different = [item | {"lang": f"{item['lang']} {index}"} for index, item in enumerate(items)]
        for given, of in ((items, "one instruction"), (different, "instructions differ")):
            functions = {
                "plain": lambda given=given: plain(given),
                "VLADataCollator": lambda given=given: ours(given),
            }
            yield from compared(f"collator, {views} views x {number}, {of}", functions, a.repeats)
        before, after = sent_ms(plain, items, a), sent_ms(ours, items, a)
        row = {"what": f"collator, {views} views x {number}, sent", "how": "VLADataCollator"}
        # The clock of other processes ticks every 10 ms: a few small batches may take none.
        yield row | {"before_ms": before, "after_ms": after, "times": round(before / after, 2) if after else None}


def sent_ms(make, items: list[dict], a) -> float:
    """Return the processor time of a batch from one worker, which makes it and writes it to shared memory, and of receiving it."""
    batches, me = 4 if a.tiny else 24, psutil.Process()
    others = set(me.children())
    loader = iter(DataLoader(range(4 + batches), None, num_workers=1, collate_fn=_Fixed(make, items)))
    for _ in range(4):
        next(loader)
    processes = [me, *(set(me.children()) - others)]

    def spent() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    start = spent()
    for _ in range(batches - 2):  # not the last, after which the worker may be gone
        next(loader)
    return round(1e3 * (spent() - start) / (batches - 2), 3)


class _Fixed:
    """Collates the same items whatever is drawn."""

    def __init__(self, make, items) -> None:
        self.make, self.items = make, items

    def __call__(self, _) -> dict:
        return dict(self.make(self.items))


def patches(a):
    """The patch embedding, Conv3d and matrix product."""
    width, number = (64, 256) if a.tiny else (1024, 48 * 256)
    projection = torch.nn.Conv3d(3, width, (2, 16, 16), (2, 16, 16)).to(DEVICE)
    pixels = torch.randn(number, 3 * 2 * 16 * 16, device=DEVICE)

    def convolution():
        return projection(pixels.view(-1, 3, 2, 16, 16)).flatten(1)

    def product():
        return torch.nn.functional.linear(pixels, projection.weight.flatten(1), projection.bias)

    with torch.no_grad():
        difference = (convolution() - product()).abs().max().item()
    functions = {"convolution": lambda: convolution().sum().backward(), "product": lambda: product().sum().backward()}
    for row in compared("patch embedding", functions, a.repeats):
        yield row | {"difference": f"{difference:.0e}"}


def backbone(a):
    """States of all layers and their gradients."""
    policy, processor = tiny_policy("qwen_pi_v3", **({} if a.tiny else {"layers": 12, "width": 256}))
    vlm = policy.vlm.to(DEVICE).train()
    batch = VLADataCollator(processor)(samples(2 if a.tiny else 8, 2, side=64 if a.tiny else 224))
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    inputs = {name: batch[name].to(DEVICE) for name in names}

    def step(planned: bool):
        plan = make_plan(vlm, **inputs) if planned else None
        states = layer_states(vlm, "transformers-5", plan=plan, **inputs)
        sum(state.square().mean() for state in states).backward()
        vlm.zero_grad(set_to_none=True)
        return states

    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        difference = max(
            (x - y)[real].abs().max().item()
            for x, y in zip(step_states(vlm, inputs), step_states(vlm, inputs, True), strict=True)
        )
    functions = {"transformers": lambda: step(False), "static": lambda: step(True)}
    for row in compared("backbone, forward and backward", functions, a.repeats):
        yield row | {"difference": f"{difference:.0e}"}


def step_states(vlm, inputs: dict, planned: bool = False) -> list[torch.Tensor]:
    plan = make_plan(vlm, **inputs) if planned else None
    return layer_states(vlm, "transformers-5", plan=plan, **inputs)


def parameters(a) -> list[torch.nn.Parameter]:
    """As many and as large as the layers of a small policy."""
    sizes = [(256, 256)] * 120 + [(1024, 256), (256, 1024)] * 40 + [(256,)] * 300
    sizes = sizes[:: 40 if a.tiny else 1]
    made = [torch.nn.Parameter(torch.randn(size, device=DEVICE)) for size in sizes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def optimizer(a):
    """Clipping and a step."""
    functions = {}
    for how in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        own = parameters(a)
        made = torch.optim.AdamW(own, lr=1e-4, **how)
        foreach = how.get("foreach", True)

        def step(own=own, made=made, foreach=foreach):
            torch.nn.utils.clip_grad_norm_(own, 1.0, foreach=foreach)
            made.step()

        functions[next(f"{name}={value}" for name, value in how.items())] = step
    yield from compared("clipping and AdamW", functions, a.repeats)


def average(a):
    """The moving average."""
    from hf_vla.training.ema import WeightAverage

    own = parameters(a)
    model = torch.nn.ParameterList(own)
    ema, kept = WeightAverage(0.999), [p.detach().clone() for p in own]
    ema.start(model)

    def one_by_one():
        for mean, parameter in zip(kept, own, strict=True):
            mean.lerp_(parameter.detach().float(), 0.001)

    yield from compared("moving average", {"one by one": one_by_one, "many": lambda: ema.update(model, 1)}, a.repeats)


def linear(a):
    """A feed-forward layer of the action head."""
    if CUDA or not torch.backends.mkldnn.is_available():
        return
    layer, x = Linear(512, 2048), torch.randn(64 if a.tiny else 784, 512, requires_grad=True)

    def step():
        layer(x).sum().backward()

    functions = {"MKL": torch.backends.mkldnn.flags(enabled=False)(step), "oneDNN": step}
    yield from compared("linear layer 512 to 2048, 784 rows", functions, a.repeats)


def compiled(a):
    """A whole step, blocks compiled one by one as `torch_compile` does."""
    if not a.compile:
        return
    from accelerate.utils import compile_regions

    policy, processor = tiny_policy("qwen_pi_v3", **({} if a.tiny else {"layers": 12, "width": 256}))
    policy = policy.to(DEVICE).train()
    batch = VLADataCollator(processor)(samples(2 if a.tiny else 8, 1, side=64 if a.tiny else 224))
    inputs = {name: x.to(DEVICE) for name, x in batch.items()}
    regions = compile_regions(policy, backend="aot_eager" if a.tiny else "inductor")

    def step(model):
        model(**inputs).loss.backward()
        model.zero_grad(set_to_none=True)

    yield from compared("step", {"eager": lambda: step(policy), "blocks": lambda: step(regions)}, a.repeats)


PARTS = {f.__name__: f for f in (collator, patches, backbone, optimizer, average, linear, compiled)}


def rows(a):
    for name in a.parts:
        yield from PARTS[name](a)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for row in rows(a):
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
