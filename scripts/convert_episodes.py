"""`hf-vla convert-episodes`, by its older name."""

import sys

from hf_vla.commands.convert_episodes import main

if __name__ == "__main__":
    sys.exit(main())
