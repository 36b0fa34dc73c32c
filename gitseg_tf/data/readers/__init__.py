"""Readers: folders and files of any supported layout to scans."""
