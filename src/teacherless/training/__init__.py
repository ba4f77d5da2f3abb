"""How a method is trained: the loop, one step of it, what it records and keeps."""
