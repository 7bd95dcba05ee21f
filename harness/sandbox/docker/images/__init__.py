"""Images: the base, the sandbox images built on it, and images of the user."""
