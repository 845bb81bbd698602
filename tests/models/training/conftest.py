"""A clock of steps instead of seconds, so that a training is as long on any machine."""

from collections.abc import Callable
from itertools import count
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def clock(monkeypatch) -> Callable[[ModuleType], None]:
    """Return a function that makes a module's monotonic clock advance 1 s a call."""

    def install(module: ModuleType) -> None:
        ticks = count()
        fake = SimpleNamespace(monotonic=lambda: float(next(ticks)), sleep=lambda _: None)
        monkeypatch.setattr(module, "time", fake)

    return install
