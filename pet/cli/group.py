"""Errors and interrupts, turned once into messages and exit codes: 2 for what the user can mend, 130 for Ctrl-C, 143
for a request to end (SIGTERM)."""

import contextlib
import io
import os
from typing import Any, NoReturn

import click

from pet.errors import PetError
from pet.store import interrupts


def is_main() -> bool:
    """Whether this process is the one that talks, of those that torchrun started together."""
    return int(os.environ.get("RANK") or 0) == 0


class Problem(click.ClickException):
    """A PetError as click shows it."""

    exit_code = 2


class PetGroup(click.Group):
    """A command group whose commands may raise PetError."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added, which is that of the work."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; no traceback for what the user can mend."""
        try:
            with interrupts.heeded(), contextlib.ExitStack() as stack:
                if not is_main():
                    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                return super().invoke(ctx)
        except PetError as problem:
            if not is_main():
                ctx.exit(Problem.exit_code)
            raise Problem(str(problem)) from None
        except interrupts.Stopped as stop:
            interrupted(ctx, stop.code)
        except KeyboardInterrupt:
            interrupted(ctx, 130)


def interrupted(ctx: click.Context, code: int) -> NoReturn:
    """Say that nothing half-written is left, and how to go on."""
    if is_main():
        click.echo("\nInterrupted. What was finished is kept; the same command goes on from there.", err=True)
    ctx.exit(code)
