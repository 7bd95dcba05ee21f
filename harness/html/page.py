"""HTML pages: one self-contained file each, that loads nothing and runs nothing.

Everything a template is given is escaped, save what its author marks as safe (a plot this project drew). The layout's
content security policy forbids scripts and requests besides, since much of what is shown was written by an agent.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("harness", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, **values: object) -> str:
    """The page that ``harness/html/TEMPLATE`` makes of these values; a name it lacks is an error."""
    return _environment().get_template(template).render(**values)
