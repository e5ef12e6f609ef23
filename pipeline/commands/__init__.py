"""The commands of `cracks`, a module for each group: `add` adds their parsers.

Slow imports are inside the functions that need them, so that `cracks --help` and a mistake in the arguments take no
time.
"""

import argparse
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pipeline.params import Params

# argparse has no public name for this type, and it cannot be subscripted at run time
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def project_params() -> "Params":
    """Return params.yaml of the project."""
    from pipeline.params import load_params
    from pipeline.project import project_root

    return load_params(project_root() / "params.yaml")
