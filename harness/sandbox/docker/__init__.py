"""The one place that knows Docker: finding or starting an engine, building images, running containers."""
