"""`hf-vla serve`, by its older name."""

import sys

from hf_vla.commands.serve import main

if __name__ == "__main__":
    sys.exit(main())
