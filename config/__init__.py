"""Example and default configuration; here so that the folder is a package and reaches the wheel."""
