"""`ftj`, or `kubectl ftj` where this is on the PATH as kubectl-ftj."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from finetune_cli.app import app
from finetune_cli.errors import CliError, Exit


def main() -> None:
    """Run one command and exit with its code."""
    called = Path(sys.argv[0]).name
    try:
        app(prog_name="kubectl ftj" if called.startswith("kubectl-") else "ftj", standalone_mode=True)
    except CliError as error:
        for line in error.lines:
            typer.echo(line, err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has enough; so has Python's own complaint at exit
        sys.exit(Exit.DONE)


if __name__ == "__main__":
    main()
