"""Run tasks on a Dask cluster. All inputs are sent to the workers, which need no shared folder."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipeline.errors import UnavailableError

CONNECT_TIMEOUT_S = 15
TASKS_PER_WORKER = 2  # one running, one queued: memory stays bounded

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
    """Run tasks on the Dask cluster at `address`; yield the key and the result of each as it completes.

    `address` is that of the scheduler, such as tcp://host:8786. `compute` gets `shared`, which is sent to each worker
    once, and a task. Tasks come with their keys, and are read no faster than they are computed. Raises UnavailableError
    if no scheduler answers, or it has no worker; `local_hint` says in the message how to run without a cluster.
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
        scattered = client.scatter(shared, broadcast=True)
        waiting = iter(tasks)
        keys: dict[Any, Key] = {}

        def submit(key: Key, task: Task) -> Any:
            future = client.submit(compute, scattered, task, pure=False)
            keys[future.key] = key
            return future

        first = [submit(*task) for _, task in zip(range(TASKS_PER_WORKER * n_workers), waiting, strict=False)]
        running = as_completed(first)
        for future in running:
            yield keys.pop(future.key), future.result()
            following = next(waiting, None)
            if following is not None:
                running.add(submit(*following))
