"""What a person asks of the models: a module for each group of commands of `cracks`.

Each has `add(commands)`, which adds its parsers, and functions that run them. Nothing here imports at its top what
takes long: `cracks --help` answers at once, and a mistake in the arguments costs no waiting.
"""

import argparse
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # argparse has no public name for what `add_subparsers` returns, and it cannot be subscripted
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction
