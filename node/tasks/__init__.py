"""Tasks that come with noded; trainer-side code, the only one beside the session that sees torch."""
