"""Whatever the graph and whatever fails: a stage starts when all that it needs is done, and not too many at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st
from prefect.states import Completed, Failed

from flows.training import run_ready

NAMES = [f"stage-{number}" for number in range(7)]


@st.composite
def graphs(draw):
    """Graphs of stages, each needing some of those before it."""
    return {name: draw(st.frozensets(st.sampled_from(NAMES[:number]))) if number else frozenset()
            for number, name in enumerate(NAMES)}  # fmt: skip


class Future:
    """As much of a future of Prefect as the order needs; like there, the state is final after `wait` alone."""

    def __init__(self, inner, taken=lambda: None):
        self._inner = inner
        self._taken = taken
        self.state = None

    def add_done_callback(self, call):
        self._inner.add_done_callback(lambda _: call(self))

    def wait(self):
        self.state = self._inner.result()
        self._taken()


class Recorder:
    """Runs stages that do nothing, and writes down in what order they began and ended, and how many were under way."""

    def __init__(self, pool, failing):
        self.events = []
        self.most_at_once = 0
        self._under_way = 0  # submitted, and the end not yet taken note of
        self._pool = pool
        self._failing = failing

    def submit(self, stage, upstream):
        assert all(future.state.is_completed() for future in upstream.values())
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        return Future(self._pool.submit(self._run, stage), self._take_note)

    def _take_note(self):
        self._under_way -= 1

    def _run(self, stage):
        self.events.append(("began", stage))
        self.events.append(("ended", stage))
        return Failed() if stage in self._failing else Completed()


@given(needs=graphs(), failing=st.frozensets(st.sampled_from(NAMES)), max_parallel=st.integers(1, 4))
def test_every_stage_that_can_start_does_in_order_and_no_other(needs, failing, max_parallel):
    with ThreadPoolExecutor(len(NAMES)) as pool:
        recorder = Recorder(pool, failing)
        states = run_ready(needs, recorder.submit, max_parallel)
    hindered = set()
    for name in NAMES:  # each after those that it may need
        if needs[name] & (failing | hindered):
            hindered.add(name)
    assert set(states) == set(NAMES) - hindered
    for name in states:
        began = recorder.events.index(("began", name))
        assert all(recorder.events.index(("ended", other)) < began for other in needs[name])
    assert recorder.most_at_once <= max_parallel


def test_two_stages_that_do_not_need_each_other_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=30)

    def meet():
        meeting.wait()
        return Completed()

    with ThreadPoolExecutor(2) as pool:
        needs = {"left": frozenset(), "right": frozenset()}
        states = run_ready(needs, lambda stage, upstream: Future(pool.submit(meet)), 2)
    assert all(state.is_completed() for state in states.values())
