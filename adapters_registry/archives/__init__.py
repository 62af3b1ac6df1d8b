"""Uploaded archives, which may be hostile: unpacked within bounds."""
