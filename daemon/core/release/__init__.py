"""What a release finds on the data partition: shaped by another one, to be taken over, or given back."""
