"""Renders templates as HTML pages. Each page is one self-contained file that loads nothing and runs no script.

Every value given to a template is escaped, except the project's own plots. The pages show texts that agents wrote, so a
content security policy also forbids scripts and requests.
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
    """Render a template of the folder harness/html. Raises UndefinedError if the template uses a missing value."""
    return _environment().get_template(template).render(**values)
