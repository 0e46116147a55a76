"""Import this before `service_support`: it lets the tests of this folder use the stage of the service's tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "service"))
