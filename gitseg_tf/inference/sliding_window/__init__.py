"""Sliding-window inference over whole scans."""
