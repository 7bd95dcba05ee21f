"""Live models and how they are called: provider presets, requests, rate limits, failures and prices."""
