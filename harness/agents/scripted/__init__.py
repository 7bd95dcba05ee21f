"""Agents without a model: playbooks, recordings, stored runs played again, calibration."""
