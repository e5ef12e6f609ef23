"""Two walls of different labels that have nothing in common but a dark hole at the same place are no copies."""

from pathlib import Path

from drawn_data import wall_with_a_hole, write_files

COMMANDS = ["cracks audit set"]
SAYS = ["set: 2 images, 0 files in quarantine"]
SAYS_NOT = ["no image has a copy with the other label", "doubtful"]


def make(folder: Path) -> None:
    write_files({"set/crack/1.png": wall_with_a_hole(1), "set/intact/2.png": wall_with_a_hole(2)}, folder)
