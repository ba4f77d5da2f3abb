"""Many runs: compared, analysed, drawn."""
