"""Templates for HTML pages, and the function that renders them."""
