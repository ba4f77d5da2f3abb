"""Other ways to run the same step: a thread per student, a recorded CUDA graph."""
