"""The commands of `cracks`, a module for each group.

Each module has `add(commands)`, which adds its parsers, and functions that run them. Slow imports are inside these
functions, so that `cracks --help` and a mistake in the arguments take no time.
"""

import argparse
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pipeline.params import Params

    # argparse has no public name for this type, and it cannot be subscripted at run time
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


def project_params() -> "Params":
    """Return params.yaml of the project."""
    from pipeline.params import load_params
    from pipeline.project import project_root

    return load_params(project_root() / "params.yaml")
