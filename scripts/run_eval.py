"""`hf-vla eval`, by its older name."""

import sys

from hf_vla.commands.eval import main

if __name__ == "__main__":
    sys.exit(main())
