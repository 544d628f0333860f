"""Where trials run on this machine: groups of GPUs, or the machine itself, and who is on which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Place:
    """GPUs that some trials share, or the machine.

    Args:
        device: Value of CUDA_VISIBLE_DEVICES for its trials; None leaves it as it is.
        room: Trials at a time.
        trials: Numbers of those that are on it.
        alone: The trial that has it for itself, or waits until the others have left; no other one
            begins there meanwhile.
    """

    device: str | None
    room: int
    trials: set[int] = field(default_factory=set)
    alone: int | None = None


class Places:
    """The places of a machine, of which none ever has more trials than room.

    A trial that is to be alone waits for the place with the fewest trials; on all others trials
    begin as before, so no GPU is idle that nobody waits for. One that is to have all places waits
    until they are empty, and no other begins meanwhile.

    Args:
        devices: Device of each place, no GPU in two of them.
        room: Trials at a time on a place.
        workers: Trials at a time in all.
    """

    def __init__(self, devices: Sequence[str | None], room: int, workers: int) -> None:
        self.workers = workers
        self._places = [Place(device, room) for device in devices]
        self._waiting: list[int] = []
        self._for_all: list[int] = []

    @property
    def has_room(self) -> bool:
        """Whether a trial that shares its place can begin."""
        if self._for_all:
            return False
        return self._running < self.workers and self._roomiest() is not None

    def take(self, trial: int) -> str | None:
        """Let a trial begin that shares its place; there must be room.

        Returns:
            The place's device.
        """
        place = self._roomiest()
        assert place is not None and self._running < self.workers
        place.trials.add(trial)
        return place.device

    def wait_alone(self, trial: int, *, all_places: bool = False) -> None:
        """Have a trial wait for a place of its own, or for all of them (see `next_alone`)."""
        if all_places:
            self._for_all.append(trial)
            return
        self._waiting.append(trial)
        self._set_aside()

    def next_alone(self) -> tuple[int, str | None] | None:
        """Let the next trial begin whose place has become free.

        Returns:
            Its number and the place's device; None if no such trial can begin now.
        """
        if self._running >= self.workers:
            return None
        if self._for_all:
            if self._running:
                return None
            self._places[0].trials.add(self._for_all[0])
            return self._for_all[0], self._places[0].device
        for place in self._places:
            if place.alone is not None and not place.trials:
                place.trials.add(place.alone)
                return place.alone, place.device
        return None

    def leave(self, trial: int) -> None:
        """A trial has ended."""
        if trial in self._for_all:
            self._for_all.remove(trial)
        for place in self._places:
            if trial in place.trials:
                place.trials.remove(trial)
                if place.alone == trial:
                    place.alone = None
        self._set_aside()

    @property
    def _running(self) -> int:
        return sum(len(place.trials) for place in self._places)

    def _roomiest(self) -> Place | None:
        """The place with the fewest trials of those that have room, the first of several."""
        open_ones = [p for p in self._places if p.alone is None and len(p.trials) < p.room]
        return min(open_ones, key=lambda place: len(place.trials), default=None)

    def _set_aside(self) -> None:
        """Give places to the trials that wait, as far as there are any."""
        while self._waiting:
            shared = [place for place in self._places if place.alone is None]
            if not shared:
                return
            emptiest = min(shared, key=lambda place: len(place.trials))
            emptiest.alone = self._waiting.pop(0)
