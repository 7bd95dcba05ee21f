"""Audits: every tactic played against a kill switch, and a check of its container's set-up."""
