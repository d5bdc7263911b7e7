"""Residency: what lies where, what comes next, and what it costs."""
