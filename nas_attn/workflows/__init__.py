"""What a user asks for, from beginning to end; values out, events meanwhile."""
