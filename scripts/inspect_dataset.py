"""`hf-vla inspect`, by its older name."""

import sys

from hf_vla.commands.inspect import main

if __name__ == "__main__":
    sys.exit(main())
