"""Calls live models through their providers' APIs, and handles rate limits, failures and prices."""
