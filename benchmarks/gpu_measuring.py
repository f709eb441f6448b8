"""How `gpu.py` measures time, launches and memory, and writes rows as they come, as JSON and as tables."""

import gc
import json
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from full_size import synchronize
from torch.profiler import ProfilerActivity, profile

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
CUDA = DEVICE.type == "cuda"


def attempt(labels: dict, measure) -> dict:
    """Return `labels` with what `measure()` returns, or with its error."""
    try:
        return labels | measure()
    except Exception as error:  # noqa: BLE001 - the other measurements go on
        traceback.print_exc(limit=-4)
        return labels | {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}


def timed(call, a, repeats: int | None = None, warmup: int = 3, seconds: float = 2.5) -> dict:
    """Return the median and the 99th percentile of `call`'s wall-clock time.

    Args:
        repeats: timed calls; by default as many as fit into `seconds`, 20 to 200.
    """
    times, began = [], time.perf_counter()
    most, least = (1, 1) if a.tiny else (repeats or 200, repeats or 20)
    for index in range(-(1 if a.tiny else warmup), most):
        if index == 0:
            began = time.perf_counter()
        if index >= least and time.perf_counter() - began > seconds:
            break
        synchronize(DEVICE)
        start = time.perf_counter()
        call()
        synchronize(DEVICE)
        if index >= 0:
            times.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2), "calls": len(times)}


def launches(call) -> dict:
    """Return what one call asks of the device: kernels, waits, copies to the host, and how long its kernels run."""
    call()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * CUDA
    with profile(activities=activities) as profiler:
        call()
        synchronize(DEVICE)
    counts, busy = Counter(), 0.0
    for event in profiler.events():
        counts[event.name] += 1
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device and not event.is_user_annotation and not event.name.startswith(("Torch-Compiled", "##")):
            busy += event.device_time
            counts["kernels"] += not event.name.startswith(("Memcpy", "Memset"))
    started = sum(n for name, n in counts.items() if name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")))
    copies = sum(n for name, n in counts.items() if name.startswith("Memcpy DtoH"))
    waits = counts["cudaStreamSynchronize"]  # cudaDeviceSynchronize is this benchmark's own
    return {
        "launches": started,
        "kernels": counts["kernels"],
        "stream_synchronizations": waits,
        "copies_to_host": copies,
        "kernels_ms": round(busy / 1e3, 2),
    }


def peak_gib() -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if CUDA else None


def free() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def table(rows: list[dict]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns).replace("\n", " ") + " |" for row in rows]
    return "\n".join(lines)


def write(results: dict, folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    text = "# hf_vla on a GPU\n"
    for name, part in results.items():
        text += (
            f"\n## {name}\n\n{part['about']}\n\n{table(part['rows'])}\n\n{part['state']}, {part['seconds']:.0f} s\n"
        )
    (folder / "results.md").write_text(text)


def run_part(part_of, a, folder: Path) -> None:
    """Run a part, a generator function, and write its rows as they come."""
    name = part_of.__name__
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    part = {"about": part_of.__doc__ or "", "state": "cut off", "seconds": 0.0, "rows": []}
    results[name] = part
    start = time.perf_counter()
    write(results, folder)
    try:
        for row in part_of(a):
            part["rows"].append(row)
            part["seconds"] = time.perf_counter() - start
            print(f"{name}: {row}", flush=True)
            write(results, folder)
        part["state"] = "finished"
    except Exception as error:  # noqa: BLE001 - the other parts go on
        traceback.print_exc()
        part["state"] = f"failed with {type(error).__name__}: {str(error)[:300]}"
    part["seconds"] = time.perf_counter() - start
    write(results, folder)
    free()
