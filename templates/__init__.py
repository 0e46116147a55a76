"""Templates of the pages that the proxy renders itself; here so that the folder is a package and reaches the wheel."""
