"""What was seen: records, pictures and loggers."""
