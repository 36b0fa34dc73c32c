"""Shared building blocks of the self-contained HTML pages."""
