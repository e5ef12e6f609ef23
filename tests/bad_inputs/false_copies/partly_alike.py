"""Two images of different labels that agree only in part are a warning, with pictures and the lines for params.yaml."""

from pathlib import Path

from drawn_data import wall_with_a_hole, write_files

COMMANDS = ["cracks audit set --out audit.html"]
SAYS = ["broken: of no two images is it doubtful whether they are copies. Observed: 2 images that break the rule"]
SAYS_NOT = ["no image has a copy with the other label"]


def make(folder: Path) -> None:
    files = {f"set/{path}.png": wall_with_a_hole(seed, shared=0.45) for path, seed in (("crack/1", 1), ("intact/2", 2))}
    write_files(files, folder)


def check(folder: Path) -> None:
    section = (folder / "audit.html").read_text(encoding="utf-8").partition('<section id="doubtful">')[2]
    assert "not_copies:\n      - [&#34;" in section or 'not_copies:\n      - ["' in section
    assert section.partition("</section>")[0].count("<img") == 2
