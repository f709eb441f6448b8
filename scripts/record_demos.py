"""`hf-vla record`, by its older name."""

import sys

from hf_vla.commands.record import main

if __name__ == "__main__":
    sys.exit(main())
