"""Files on disk: safe reading and writing, locks, and the layout of the library's folder."""
