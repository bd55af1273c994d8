"""`python -m indexer`: build generations and look after a store."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # Ends what is open; and as process 1 of a container Python would ignore the signal. At once, for the imports below
    # take half a second, and some seconds where there is little processor time.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as a shell's & has it
        signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))

import shlex
from pathlib import Path
from typing import Annotated

import typer

from coldframe import cores, settings
from indexer import store_commands
from indexer.build_command import build_command
from indexer.calibrate_command import calibrate_command
from indexer.evaluate.command import evaluate_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Build Coldframe's indexes from files of articles, and look after the store that holds them.",
)
app.command("build")(build_command)
app.command("list")(store_commands.list_command)
app.command("verify")(store_commands.verify_command)
app.command("activate")(store_commands.activate_command)
app.command("rollback")(store_commands.rollback_command)
app.command("prune")(store_commands.prune_command)
app.command("report")(store_commands.report_command)
app.command("calibrate")(calibrate_command)
app.command("evaluate")(evaluate_command)


@app.command()
def convert(
    model: Annotated[str, typer.Option(help="A BERT or RoBERTa sentence encoder: a hub id or a directory.")],
    out: Annotated[Path, typer.Option(help="The directory to make.")],
) -> None:
    """Make a Longformer that reads 4,096 tokens of a BERT or RoBERTa sentence encoder, without training.

    Example: python -m indexer convert --model sentence-transformers/all-distilroberta-v1 --out distil-4096
    """
    from coldframe import models
    from coldframe.convert import convert_directory
    from coldframe.errors import InvalidArgument

    directory = models.locate(model)
    config, weights = models.read_config(directory, model), models.read_weights(directory, model)
    tokenizer = models.read_tokenizer(directory, model)
    try:
        convert_directory(directory, out, config, weights, tokenizer)
    except OSError as error:
        raise InvalidArgument(
            f"{out} cannot be written ({error.strerror}); name another directory", field="out"
        ) from error
    typer.echo(f"{out} is a Longformer; build with it: python -m indexer build --model {shlex.quote(str(out))} ...")


if __name__ == "__main__":
    cores.heed()
    cores.rest_soon()
    settings.run(app, prog="python -m indexer", prefix="COLDFRAME_INDEXER")
