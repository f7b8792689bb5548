"""What tests of the local backend share."""
