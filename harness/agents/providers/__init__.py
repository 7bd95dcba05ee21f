"""Models behind a provider's API: provider presets, requests, rate limits, failures and prices."""
