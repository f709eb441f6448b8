"""How far lower precision moves a policy's actions, beside the size of its weights and the processor time of a prediction.

    python benchmarks/precision.py
    python benchmarks/precision.py --policy outputs/quickstart/policy --precisions bfloat16 int8

Without --policy it has random weights (QwenGR00T; `--width` and `--layers` set its size), whose actions move more than those of a trained
one. Differences are of normalised actions from float32's, with the same noise. CPUs multiply neither 8-bit floats nor 4-bit numbers:
speed is about GPUs, where `hf-vla info POLICY --precisions …` prints the same table.
"""

import argparse
import tempfile
import time

import torch
from prediction import build

from hf_vla.inference.precision import PRECISIONS, measure_precisions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="folder or Hub repository of a policy")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help=", ".join(PRECISIONS))
    for name, value in {"width": 256, "layers": 8, "repeats": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if a.policy is None:
            build(a.width, a.layers).save_pretrained(folder)
        clock = {"clock": time.process_time, "device": "cpu"}
        print("| precision | weights, MiB | processor time, ms | largest difference | median difference |")
        print("|---|---|---|---|---|")
        for m in measure_precisions(a.policy or folder, a.precisions, repeats=a.repeats, **clock):
            size, speed = f"{m.weight_bytes / 2**20:.0f}", f"{1e3 * m.seconds:.0f}"
            print(f"| {m.name} | {size} | {speed} | {m.largest:.1e} | {m.typical:.1e} |", flush=True)


if __name__ == "__main__":
    main()
