"""A background writer that says when somebody begins to wait for its job: for tests of what happens until then."""

import threading
from typing import Any

from pet.store.background import BackgroundWriter


def watched_writer(waited_for: threading.Event) -> type[BackgroundWriter]:
    """One that sets `waited_for` whenever a job that is still running is waited for."""

    class Watched(BackgroundWriter):
        """It."""

        def wait(self) -> Any:
            """And say so."""
            if self.is_busy:
                waited_for.set()
            return super().wait()

    return Watched
