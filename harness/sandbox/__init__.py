"""Defines the sandbox in which an agent works, implements it with Docker containers, and observes it from outside."""
