"""`hf-vla train`, by its older name."""

import sys

from hf_vla.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
