"""The templates of HTML pages, and the function that renders them."""
