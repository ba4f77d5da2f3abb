"""One file per data set: what its files hold and where they come from."""
