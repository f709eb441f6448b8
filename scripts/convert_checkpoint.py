"""`hf-vla convert`, by its older name."""

import sys

from hf_vla.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
