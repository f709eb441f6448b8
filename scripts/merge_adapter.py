"""`hf-vla merge`, by its older name."""

import sys

from hf_vla.commands.merge import main

if __name__ == "__main__":
    sys.exit(main())
