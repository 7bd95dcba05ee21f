from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from harness.html.page import _environment, render_page


def test_what_an_agent_wrote_is_escaped() -> None:
    """Markup in a value is shown, not obeyed, and a value that is missing is an error rather than a gap."""
    template = _environment().from_string("{{ said }}")
    assert template.render(said="<script>x</script>") == "&lt;script&gt;x&lt;/script&gt;"
    with pytest.raises(UndefinedError):
        template.render()


def test_a_page_loads_and_runs_nothing() -> None:
    """The layout forbids scripts and requests, and names no address."""
    page = render_page("layout.html.j2")
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
