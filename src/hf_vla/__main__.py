"""`python -m hf_vla`: the command-line tool `hf-vla`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main())
