"""Launching a job: checks, the processes it runs in, and how it ended."""
