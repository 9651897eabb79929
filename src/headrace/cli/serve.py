"""``headrace catalog serve``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

catalog = typer.Typer(name="catalog", no_args_is_help=True, help="The lake's Iceberg REST catalog, for other engines.")


@catalog.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; by default lake.catalog.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; by default lake.catalog.port.")] = None,
) -> None:
    """Serve the lake over the Iceberg REST protocol, until stopped. Clients present the project's bearer token.

    Example: headrace catalog serve --port 8181
    """
    from headrace.catalog.serve import Endpoint, serve_here
    from headrace.cli.folder import project_of
    from headrace.pipeline import open_catalog

    project = project_of(context)
    settings = project.lake.catalog
    host, port = host or settings.host, settings.port if port is None else port
    console = Console(stderr=True)
    kept = "lake.catalog.token" if settings.token is not None else str(project.state / "catalog-token")
    if host not in ("127.0.0.1", "::1", "localhost"):
        console.print(
            "[yellow]The token goes over the network unencrypted: put a TLS proxy before it, or keep it on loopback.[/]"
        )
    with open_catalog(project) as opened:

        def ready(endpoint: Endpoint) -> None:
            console.print(f"Iceberg REST catalog at {endpoint.url} · warehouse {project.lake.name} · bearer token: {kept}")

        serve_here(opened, name=project.lake.name, host=host, port=port, token=project.catalog_token().reveal(), ready=ready)
