"""Make `python -m emu_edit VERB` the same program as the console script `emu-edit`.

Python looks in the working directory first, where a user may have packages named like ours beside
`emu_edit`. Ours are taken from the folder this package is in, before anything asks for them by
name; processes that are started anew come through here, too.
"""

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for name in ("callbacks", "configs", "datamodules"):
    import_module(name)
del sys.path[0]

from emu_edit.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
