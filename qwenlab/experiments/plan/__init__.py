"""Read a spec file, check it, and list the points that it asks to run."""
