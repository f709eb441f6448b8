"""`hf-vla convert-recipe`, by its older name."""

import sys

from hf_vla.commands.convert_recipe import main

if __name__ == "__main__":
    sys.exit(main())
