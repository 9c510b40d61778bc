"""aegis data collect: web pages, as their owners allow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, OUTPUT_FOLDER, AsJson
from aegis.cli.show import print_json, print_note, print_table
from aegis.errors import AegisError, MissingPackageError, StoppedError

_SITES = "YAML file of sites, each with its licence, e.g. examples/sites.yaml."
_OUTPUT = "The data folder to write."
_CACHE = (
    "Where texts and robots.txt are kept for a day; by default beside the output, as DIR.cache."
)
_CONTACT = "Your e-mail address or https page, instead of the file's; sent with every request."


def collect(
    sites: Annotated[Path, typer.Argument(metavar="SITES", help=_SITES, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    contact: Annotated[str | None, typer.Option(help=_CONTACT)] = None,
    cache: Annotated[Path | None, typer.Option(help=_CACHE, callback=OUTPUT_FOLDER)] = None,
    json: AsJson = False,
) -> None:
    """Fetch what robots.txt, terms and reservations allow; every page keeps where it is from.

    Texts go to plain.jsonl with personal data masked, what was not collected to rejected.jsonl with
    the reason. Stopped at any time, the same command goes on.
    """
    try:
        from aegis.data.sources.web.collect import collect as collect_pages
        from aegis.data.sources.web.sites import read_sites
    except ModuleNotFoundError as error:
        problem = f"aegis data collect needs the package {error.name}"
        raise MissingPackageError(f"{problem}: pip install 'aegis-so8t[data]'") from error
    settings = read_sites(sites, contact=contact)
    place = cache or Path(f"{output.absolute()}.cache")
    try:
        summary = collect_pages(settings, output, place)
    except KeyboardInterrupt:
        kept = f"what was read is in {place}"
        raise StoppedError(f"stopped; {kept}; the same command goes on from there") from None
    if json:
        print_json({"folder": str(output), **summary})
    else:
        rows = [
            (site["start"][0], site["licence"], *(str(site[name]) for name in ("asked", "pages")))
            for site in summary["sites"]
        ]
        print_table(("site", "licence", "asked", "pages"), rows, title=str(output))
        if reasons := summary["rejected"]:
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            print_note(f"not collected: {counts}; see {output}/rejected.jsonl")
    if not summary["pages"]:
        raise AegisError(f"{output}: no page could be collected; the reasons are in rejected.jsonl")
