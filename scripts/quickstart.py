"""`hf-vla quickstart`, by its older name."""

import sys

from hf_vla.commands.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
