"""Text that routers read: the view of a request, its parts, templates, term counts."""
