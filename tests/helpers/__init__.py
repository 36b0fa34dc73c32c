"""Shared by several tests: synthetic cohorts, reference networks, servers and worker scripts."""
