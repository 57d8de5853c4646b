"""Print the project's requirements with the extras named on the command line, one a line.

An image installs them in a layer of its own, before the code: then a change of the code does not download torch again.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]]
print("\n".join([*project["dependencies"], *extras]))
