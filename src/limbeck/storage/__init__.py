"""Files that survive a kill, and files that are not trusted."""
