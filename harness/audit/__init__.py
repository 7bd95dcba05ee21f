"""Audits a kill switch: plays every tactic against it, and checks how its container is set up."""
