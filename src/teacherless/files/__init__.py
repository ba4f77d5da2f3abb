"""What a run folder holds: files that are whole or not there (`disk`), and what stands in them (`schemas`)."""
