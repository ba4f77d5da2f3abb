"""What a user asks for, merged once into a run, and the run's folder."""
