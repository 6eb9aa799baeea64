"""Attacks a server: ``scripts/fuzz --count N --seed S``; prints a report."""

import asyncio
import sys
import time
from typing import Annotated

import typer

from tests.fuzz.cases import case_of
from tests.fuzz.run import fuzz


def main(
    count: Annotated[int, typer.Option(help="Number of cases.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Seed of all cases.")] = 1,
    show: Annotated[int | None, typer.Option(help="Print this case, and send nothing.")] = None,
) -> None:
    """Sends hostile messages, frames and requests to a server with honest sessions."""
    if show is not None:
        typer.echo(repr(case_of(seed, show)))
        return
    report = asyncio.run(
        fuzz(seed, count, lambda what: typer.echo(f"{time.strftime('%T')} {what}", err=True))
    )
    typer.echo("\n".join(report.lines()))
    if report.problems:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
