"""What a network is worth: predictors in, numbers out."""
