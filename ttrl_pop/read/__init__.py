"""READ: files, pipes and hubs become problems."""
