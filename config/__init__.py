"""Options, and what every part of the program needs first."""

import os

# Idle threads sleep instead of spinning: with other programs running, steps are up to 3 times faster. OpenMP reads this
# when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
