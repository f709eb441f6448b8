"""The Space: `hf-vla demo`, from the package's wheel beside this file. The variable MODEL_ID names the policy."""

import runpy
import sys
import tempfile
import zipfile
from pathlib import Path

for wheel in sorted(Path(__file__).parent.glob("hf_vla-*.whl")):
    # Unpacked rather than installed: a Space installs requirements before it has its own files.
    folder = tempfile.mkdtemp(prefix="hf_vla-")
    zipfile.ZipFile(wheel).extractall(folder)
    sys.path.insert(0, folder)

if __name__ == "__main__":
    sys.argv[1:] = ["demo"]
    runpy.run_module("hf_vla", run_name="__main__")
