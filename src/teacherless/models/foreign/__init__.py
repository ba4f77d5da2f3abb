"""Anyone's network: by name, wrapped, its stages found."""
