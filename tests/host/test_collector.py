"""Python's collector: off where it is asked to be, and as it was afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest

from bench.host.collector import collected_by_hand, loaded_for_good


class Cycle:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("was_enabled", [True, False])
@pytest.mark.parametrize("every_steps", [0, 5])
def test_the_collector_is_off_inside_and_restored_after(every_steps: int, was_enabled: bool) -> None:
    """Whatever happens inside."""
    was_on, frozen, inside = gc.isenabled(), gc.get_freeze_count(), []

    def fail() -> None:
        with collected_by_hand(every_steps):
            inside.append((gc.isenabled(), gc.get_freeze_count() > 0))
            raise KeyError

    try:
        (gc.enable if was_enabled else gc.disable)()
        with pytest.raises(KeyError):
            fail()
        assert inside == [(was_enabled and not every_steps, every_steps > 0 or frozen > 0)]
        assert (gc.isenabled(), gc.get_freeze_count()) == (was_enabled, 0 if every_steps else frozen)
    finally:
        (gc.enable if was_on else gc.disable)()


def test_what_is_loaded_for_good_is_not_looked_at_again() -> None:
    """Garbage that comes later is."""
    was_on = gc.isenabled()
    try:
        gc.enable()
        with loaded_for_good():
            assert not gc.isenabled()
            inside = weakref.ref(Cycle())
        after = weakref.ref(Cycle())
        gc.collect()
        assert gc.isenabled()
        assert after() is None
        assert inside() is not None
        gc.unfreeze()
        gc.collect()
        assert inside() is None
    finally:
        gc.unfreeze()
        (gc.enable if was_on else gc.disable)()
