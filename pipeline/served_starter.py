"""The starter model in the form in which it is served, for a server that has no other model yet.

python -m pipeline.served_starter --recipe data/demo.yaml --out data/serving/starter
"""

import argparse
import shutil
from itertools import islice
from pathlib import Path

from pipeline.conversion import write_served
from pipeline.decision import DECISION_FILE
from pipeline.demo import draw, read_recipe
from pipeline.files import replacing_folder, write_json
from pipeline.find_model import STARTER_CONCRETE
from pipeline.images import decode
from pipeline.known_concrete import KNOWN_CONCRETE_FILE
from pipeline.stage import run_main
from pipeline.starter import load_starter

N_GOLDEN = 8  # drawn images do to tell whether two ways of computing agree


def write_served_starter(recipe: Path, out: Path) -> None:
    """Write the folder `out`, with images of the recipe as golden ones. Raises CracksError as `load_starter` does."""
    starter = load_starter()
    golden = [decode(content) for _, content in islice(draw(read_recipe(recipe)), N_GOLDEN)]
    with replacing_folder(out) as partial:
        write_served(starter.model, golden, partial)
        write_json(partial / DECISION_FILE, starter.decision.as_dict())
        if STARTER_CONCRETE.exists():
            shutil.copyfile(STARTER_CONCRETE, partial / KNOWN_CONCRETE_FILE)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True, help="recipe of drawn images, for the golden ones")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    write_served_starter(args.recipe, args.out)


if __name__ == "__main__":
    run_main(main)
