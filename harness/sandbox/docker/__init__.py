"""Docker: connecting to an engine, building images, running containers. Nothing else imports the SDK."""
