"""The `coldframe` console script. Its commands are in `commands`, its tables in `tables`."""

from __future__ import annotations

import signal
import sys

NEEDS_EXTRA = "the command line needs the 'cli' extra: pip install 'coldframe[cli]'"


def main() -> None:
    """Run the command line; without the `[cli]` extra, say in one sentence how to get it."""
    # Whose feed is silent waits for it; and as process 1 of a container Python would ignore the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(NEEDS_EXTRA)
    from coldframe import commands, settings

    settings.run(commands.app, prog="coldframe", prefix="COLDFRAME")


if __name__ == "__main__":
    main()
