"""Models behind an API: presets, requests, rate limits, failures, prices."""
