"""Make `python -m emu_edit VERB` the same program as the console script `emu-edit`."""

import sys

from emu_edit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
