"""Searches compared on a table of trainings, which holds the learning curve of every plan."""
