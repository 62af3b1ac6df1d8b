"""The routing methods, one file each."""
