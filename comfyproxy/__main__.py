"""`python -m comfyproxy`: the command, where its script is not on the PATH."""

import sys

from comfyproxy.cli import main

sys.exit(main())
