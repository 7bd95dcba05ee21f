"""Renders templates as HTML pages. Each page is a self-contained file that loads nothing and runs no script.

Every value passed to a template is escaped, except the project's own plots. The pages show texts that agents wrote, so
a content security policy also forbids scripts and network requests.
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
    """Render a template from the folder harness/html with ``values``, and return the HTML text.

    Raises UndefinedError if the template uses a value that is missing from ``values``.
    """
    return _environment().get_template(template).render(**values)
