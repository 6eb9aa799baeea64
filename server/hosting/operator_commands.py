"""The commands ``python -m server operator add|list|remove|password``."""

import getpass
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from server.ops.log import OperatorsLog
from server.ops.manage import ManageOperators
from server.runtime.settings import ConfigurationError, Settings
from storage.postgres.operators import OperatorRecords
from storage.postgres.records import Records
from storage.rows.operators import OperatorRole

Runner = Callable[[Callable[[Settings], Awaitable[None]]], None]
"""Starts missing engines, and runs work with the settings."""

NoPassword = Annotated[
    bool, typer.Option("--no-password", help="A trusted proxy names the operator.")
]


def operator_commands(run: Runner) -> typer.Typer:
    """The commands about operators."""
    commands = typer.Typer(no_args_is_help=True, help="Operators: people who act or look.")

    def managed(work: Callable[[ManageOperators], Awaitable[None]]) -> None:
        async def connected(settings: Settings) -> None:
            assert settings.database_url is not None
            records = OperatorRecords.over(await Records.connect(settings.database_url))
            try:
                log = OperatorsLog(records, lambda: time.time_ns() // 1_000_000)
                await work(ManageOperators(records, log))
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
            finally:
                await records.close()

        run(connected)

    @commands.command()
    def add(
        name: str,
        role: Annotated[OperatorRole, typer.Option(help="read: looks. act: acts too.")],
        no_password: NoPassword = False,
    ) -> None:
        """Adds an operator, and asks for a password."""
        password = None if no_password else ask_password()
        managed(lambda operators: operators.add(name, role, password))
        typer.echo(f"{name} may {role}")

    @commands.command("list")
    def list_operators() -> None:
        """Lists the operators: name, role, and how they sign in."""

        async def show(operators: ManageOperators) -> None:
            for one in await operators.all():
                typer.echo(
                    f"{one.name}\t{one.role}\t{'password' if one.password_hash else 'proxy'}"
                )

        managed(show)

    @commands.command()
    def remove(name: str) -> None:
        """Removes an operator, and ends the operator's sessions at once."""
        managed(lambda operators: operators.remove(name))
        typer.echo(f"{name} is removed")

    @commands.command()
    def password(name: str, no_password: NoPassword = False) -> None:
        """Sets another password, and ends the operator's sessions at once."""
        new = None if no_password else ask_password()
        managed(lambda operators: operators.set_password(name, new))
        typer.echo(f"{name} has {'no password' if no_password else 'another password'}")

    return commands


def ask_password() -> str:
    """A password from the terminal, or a line of the input.

    It is never an argument, which other users of the machine could read.
    """
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    typed = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != typed:
        raise typer.BadParameter("the two are not the same")
    return typed
