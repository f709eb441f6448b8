"""Helpers that know nothing of robots or models."""
