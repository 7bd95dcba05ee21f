from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from harness.html.page import _environment, render_page


def test_what_an_agent_wrote_is_escaped() -> None:
    """HTML templates escape every inserted value, and raise an error if a value is missing."""
    template = _environment().from_string("{{ text }}")
    assert template.render(text="<script>x</script>") == "&lt;script&gt;x&lt;/script&gt;"
    with pytest.raises(UndefinedError):
        template.render()


def test_a_page_loads_and_runs_nothing() -> None:
    """The page layout blocks scripts and requests by its security policy, and contains no URL."""
    page = render_page("layout.html.j2")
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
