"""Renders HTML pages. Each page is one self-contained file that loads nothing and runs no script.

Every value given to a template is escaped, except plots that this project drew and marked as safe. As agents wrote much
of what is shown, the layout's content security policy forbids scripts and requests as well.
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
    """Render the template ``harness/html/TEMPLATE`` with these values; a value that is missing is an error."""
    return _environment().get_template(template).render(**values)
