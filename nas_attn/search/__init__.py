"""The search: record, proposals, conductor and executors."""
