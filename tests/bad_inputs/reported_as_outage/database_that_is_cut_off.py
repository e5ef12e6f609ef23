"""A database of MLflow that was cut off is said to be damaged, with what to do, and not to be away."""

import os
import sqlite3
from pathlib import Path

COMMANDS = ["cracks history"]
EXIT_CODE = 2
SAYS = ["is damaged: (sqlite3.DatabaseError) database disk image is malformed. Restore its database from a backup"]


def make(folder: Path) -> None:
    (folder / "mlflow").mkdir()
    database = folder / "mlflow" / "mlflow.db"
    with sqlite3.connect(database) as store:
        for number in range(100):
            store.execute(f"create table t{number} (a text)")
    store.close()
    os.truncate(database, 5000)
