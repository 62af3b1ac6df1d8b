"""What each dashboard shows, a module for each."""
