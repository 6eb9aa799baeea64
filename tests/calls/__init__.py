"""Call providers that are not there: what they send and answer."""
