"""Audits a kill switch: plays tactics (scripted attacks) against it, and checks how its container is set up."""
