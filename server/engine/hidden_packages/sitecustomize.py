"""Makes packages look absent in every process of the engine; Python imports this module at start.

The launcher puts this folder in front of PYTHONPATH if a package that vLLM brings cannot be imported, and names such
packages in the variable.
"""

import os
import sys

for name in os.environ.get("MOERGATE_HIDDEN_PACKAGES", "").split():
    sys.modules[name] = None  # type: ignore[assignment]  # imports and find_spec now treat it as absent
