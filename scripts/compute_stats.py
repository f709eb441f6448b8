"""`hf-vla stats`, by its older name."""

import sys

from hf_vla.commands.stats import main

if __name__ == "__main__":
    sys.exit(main())
