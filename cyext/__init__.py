"""Mechanism: what needs C speed or a system call. Knows no policy and imports nothing of ours."""
