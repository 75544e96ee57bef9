"""What the list-making commands share: folder walks, archives, shards of face crops."""
