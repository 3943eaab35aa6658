"""What a tensor looks like on the wire."""
