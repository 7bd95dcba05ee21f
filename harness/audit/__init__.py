"""Audits kill switches by running scripted attacks (tactics) against them and checking their containers' set-up."""
