"""Options, and what every part of the program needs first."""

import os
import sys
from importlib.util import find_spec

from config.startup import open_closed_streams

open_closed_streams()
# Idle threads sleep instead of spinning: with other programs running, steps are up to 3 times
# faster. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

needed = ("numpy", "pydantic", "tomli_w", "torch", "tqdm")
missing = [name for name in needed if not find_spec(name)]
if missing:
    print(
        f"error: {sys.executable} has no {', '.join(missing)}; use .venv/bin/python, which "
        "`make train` installs, or install with: python -m pip install -r requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)
