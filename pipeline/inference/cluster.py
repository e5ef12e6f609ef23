"""Work spread over a Dask cluster: what it needs travels with it, workers need no folder of this machine."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipeline.errors import UnavailableError

CONNECT_TIMEOUT_S = 15
TASKS_PER_WORKER = 2  # one is computed, one waits: memory stays bounded

Shared = TypeVar("Shared")
Key = TypeVar("Key")
Task = TypeVar("Task")
Result = TypeVar("Result")


def compute_on_cluster(
    address: str,
    compute: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Iterable[tuple[Key, Task]],
    *,
    local_hint: str,
) -> Iterator[tuple[Key, Result]]:
    """Yield the key and the result of each task, computed by the Dask cluster at `address`, as they come.

    Args:
        address: of the scheduler, such as tcp://host:8786.
        compute: what is done to a task.
        shared: what every task needs; it travels once.
        tasks: by key, read no faster than they are computed.
        local_hint: what a person does who has no cluster, in words.

    Raises:
        UnavailableError: no scheduler answers at `address`, or it has no worker.
    """
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"No Dask scheduler answers at {address!r}: {error}. Start it, or {local_hint} to compute on this machine."
        ) from None
    with client:
        n_workers = len(client.scheduler_info()["workers"])
        if not n_workers:
            raise UnavailableError(f"The Dask scheduler at {address!r} has no worker. Start one: dask worker {address}")
        there = client.scatter(shared, broadcast=True)
        waiting = iter(tasks)
        keys: dict[Any, Key] = {}

        def submit(key: Key, task: Task) -> Any:
            future = client.submit(compute, there, task, pure=False)
            keys[future.key] = key
            return future

        first = [submit(*task) for _, task in zip(range(TASKS_PER_WORKER * n_workers), waiting, strict=False)]
        running = as_completed(first)
        for future in running:
            yield keys.pop(future.key), future.result()
            following = next(waiting, None)
            if following is not None:
                running.add(submit(*following))
