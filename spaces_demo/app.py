"""The Space: `hf-vla demo`. The environment variable MODEL_ID names the policy."""

import sys

from hf_vla.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
