"""Tasks that come with noded (`byte_gpt`); trainer-side code, the only one beside the session that sees torch."""
