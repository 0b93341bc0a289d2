"""One job at a time in another thread: a model of gigabytes is written and hashed while the next one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pet.store import interrupts


class BackgroundWriter:
    """Runs jobs that copy, write and hash, and must not touch the GPU; what only the main thread may do, as to publish
    and to hear signals, is done there. Leaving the context waits for the job, also when something else went wrong."""

    def __init__(self) -> None:
        self._job: Future[Any] | None = None
        self._then: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:  # else the reason for leaving goes on
                raise

    @property
    def is_busy(self) -> bool:
        """Whether a job is still running."""
        return self._job is not None and not self._job.done()

    def start(self, job: Callable[[], Any], then: AbstractContextManager[Any] | None = None) -> None:
        """Start a job when the one before is done.

        Args:
            job: What the other thread does.
            then: A context, left in the caller's thread by whoever waits for the job, as if the job had been its block:
                what publishes when all went well, and cleans up when it did not.

        Raises:
            Exception: What the job before raised; this one is not started.
        """
        self.wait()
        thread = ThreadPoolExecutor(1)
        self._job, self._then = thread.submit(job), then or nullcontext()
        thread.shutdown(wait=False)  # it ends with its job

    def wait(self) -> Any:
        """Wait for the job, if there is one, and leave its `then`. A second signal ends the waiting, but `then` is not
        left before the job is done: nobody may take away what is still being written.

        Returns:
            What the job returned.

        Raises:
            Exception: What the job raised.
            Stopped: There was a signal; the job is done.
        """
        if self._job is None:
            return None
        with interrupts.deferred():
            wait_for([self._job])
            job, self._job = self._job, None
            with self._then:
                return job.result()
