"""HTML pages: the templates and the function that renders them."""
