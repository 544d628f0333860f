"""What the trials on record say."""
