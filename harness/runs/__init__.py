"""Validates run requests, runs their trials, and resumes interrupted runs."""
