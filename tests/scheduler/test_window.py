"""Which requests and steps count."""

import numpy as np

from pimserve.device_models.plan import FS_PER_S
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.window import MeasuredWindow


def test_a_loop_that_is_not_closed_counts_its_last_requests() -> None:
    ones = np.ones(4, np.int64)
    table = RequestTable(np.arange(4) * 10**12, ones, ones, 100)
    table["replica"][:] = 0

    def counted(window: MeasuredWindow) -> tuple[list[bool], tuple[int, int]]:
        return window.holds(table.columns, np.arange(4)).tolist(), window.of_steps_fs(table.columns, 0)

    assert counted(MeasuredWindow(FS_PER_S, 3 * FS_PER_S)) == ([False, True, True, False], (FS_PER_S, 3 * FS_PER_S))
    assert counted(MeasuredWindow(FS_PER_S))[0] == [False, True, True, True]
    # The clients of a closed loop have nothing more to send after their last request.
    assert counted(MeasuredWindow(FS_PER_S, closed=True)) == ([False, True, True, False], (FS_PER_S, 3 * FS_PER_S))
    assert counted(MeasuredWindow(closed=True))[0] == [True] * 4
