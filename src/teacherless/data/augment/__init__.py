"""What is done to an image, and how images are mixed."""
