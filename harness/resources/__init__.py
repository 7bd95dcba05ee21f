"""What the lab reads from files: its own data, the user's plugins, and strictly checked YAML."""
