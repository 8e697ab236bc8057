"""Training for a time that a busy machine does not shorten."""

import time

from dragoman.wall_clock import WallClock


class ProcessorClock(WallClock):
    """The same by processor time of this process, all its threads together: what else the machine does, or that it
    pauses the process, takes nothing away. Data must be loaded in the process, and the model be trained on the CPU."""

    def now(self) -> float:
        return time.process_time()
